//! ORPO: the policy learns the chosen answers and to prefer them, whichever of its weights are
//! trained.

use std::fs;

use crate::on_policy::number;
use crate::orpo_table::ORPO;
use crate::preference_sharing::{largest, tensors};
use crate::support::{Workspace, pair, records};

/// Trained models, and a configuration that has the stage.
fn with_orpo() -> Workspace {
    let workspace = Workspace::trained();
    let config = fs::read_to_string(workspace.path("config.toml")).expect("a configuration");
    workspace.write("config.toml", &(config + ORPO));
    workspace
}

#[test]
fn one_batch_of_pairs_is_learned_by_heart() {
    let workspace = with_orpo();
    workspace.write("pairs.jsonl", &records(0, 16, pair));
    workspace.succeed(
        "orpo config.toml --set orpo.max_steps=150 --set orpo.eval_fraction=0.0 \
         --set orpo.eval_steps=0 \
         --set orpo.learning_rate=5e-3",
    );
    let lines = workspace.metrics("trial", "orpo");
    let (first, last) = (&lines[0], lines.last().expect("a line"));
    assert_eq!(number(first, "train/epoch"), 1.0);
    assert!(number(first, "rewards/accuracies") < 1.0, "{first:?}");
    assert_eq!(number(last, "rewards/accuracies"), 1.0);
    assert!(number(last, "log_odds_chosen") > 3.0, "{last:?}");
    // The prompts count too, and their first words cannot be predicted.
    let (before, after) = (number(first, "nll_loss"), number(last, "nll_loss"));
    assert!(after < 0.5 * before, "from {before} to {after}");
    for line in [first, last] {
        let sum = number(line, "nll_loss") - 0.1 * number(line, "log_odds_ratio");
        let loss = number(line, "train/loss");
        assert!((loss - sum).abs() < 1e-5 * sum, "{line:?}");
    }
}

#[test]
fn adapters_and_upper_layers_learn_alone() {
    let workspace = with_orpo();
    for (name, flag) in [("lora", "orpo.lora={}"), ("upper", "orpo.freeze_layers=1")] {
        workspace.succeed(&format!(
            "orpo config.toml --set run.name={name} --set {flag} --set orpo.max_steps=20 \
             --set orpo.learning_rate=1e-2"
        ));
        let lines = workspace.metrics(name, "orpo");
        let (first, last) = (&lines[0], lines.last().expect("a line"));
        for metric in ["eval/loss", "eval/log_odds_ratio"] {
            let (before, after) = (number(first, metric), number(last, metric));
            assert!(before != after, "{name}: {metric} stays at {before}");
        }
        let (before, after) = (number(first, "eval/loss"), number(last, "eval/loss"));
        assert!(after < before, "{name}: from {before} to {after}");
        let accuracy = number(last, "eval/rewards/accuracies");
        assert!(accuracy > 0.5, "{name}: {accuracy}");
    }
    let adapters = tensors(
        &workspace
            .model("lora", "orpo")
            .join("adapter_model.safetensors"),
    );
    for (name, tensor) in &adapters {
        assert!(name.contains("lora_") && largest(tensor) > 0.0, "{name}");
    }
    let start = tensors(&workspace.path("models/sft/model.safetensors"));
    let upper = tensors(&workspace.model("upper", "orpo").join("model.safetensors"));
    assert_eq!(start.len(), upper.len());
    for (name, tensor) in &upper {
        let step = largest(&(tensor - &start[name]).expect("one shape"));
        let frozen = ["embed_tokens", "layers.0."]
            .iter()
            .any(|part| name.contains(part));
        assert_eq!(step == 0.0, frozen, "{name} moved by {step}");
    }
}

/// Held-out pairs in several passes have the means that they have in one.
#[test]
fn an_evaluation_is_a_mean_over_all_held_out_pairs() {
    let workspace = with_orpo();
    let before = |name: &str, tokens: usize| {
        workspace.succeed(&format!(
            "orpo config.toml --set run.name={name} --set orpo.max_steps=1 \
             --set orpo.micro_batch_tokens={tokens}"
        ));
        workspace.metrics(name, "orpo")[0].clone()
    };
    let (whole, cut) = (before("whole", 4096), before("cut", 96));
    let sum = number(&whole, "eval/nll_loss") - 0.1 * number(&whole, "eval/log_odds_ratio");
    assert!(
        (number(&whole, "eval/loss") - sum).abs() < 1e-5,
        "{whole:?}"
    );
    for metric in ["eval/loss", "eval/nll_loss", "eval/log_odds_ratio"] {
        let (a, b) = (number(&whole, metric), number(&cut, metric));
        assert!((a - b).abs() < 1e-5, "{metric}: {a} and {b}");
    }
}

#[test]
fn the_stage_is_planned_and_checked_before_another() {
    let workspace = with_orpo();
    let planned = workspace.command("plan config.toml").output();
    let planned = String::from_utf8(planned.expect("the binary").stdout).expect("UTF-8");
    assert!(planned.contains("in stage orpo"), "{planned}");
    workspace.write("pairs_orpo.jsonl", "{\"text\": \"no pair\"}\n");
    for command in ["plan", "run"] {
        let command = format!("{command} config.toml --set orpo.data=pairs_orpo.jsonl");
        workspace
            .run(&command)
            .assert_refused(&["stage orpo", "[orpo] data"]);
    }
    assert!(!workspace.path("runs/trial/pretrain/metrics.jsonl").exists());
}
