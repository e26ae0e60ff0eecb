//! Learning rates as applied to the weights: even the shortest stages learn, a stage that cannot
//! change its model says so, and steps that are not finite are skipped and counted.

use std::fs;

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::on_policy::number;
use crate::refusal::refused;
use crate::support::{Workspace, pair, read, records};

const SUPERVISED: [&str; 4] = ["pretrain", "sft", "dpo", "reward"];

/// The learning rate of each step of a stage.
fn rates(workspace: &Workspace, name: &str, stage: &str) -> Vec<f64> {
    let metric = match stage {
        "ppo" => "policy/learning_rate",
        _ => "train/learning_rate",
    };
    let mut lines = workspace.metrics(name, stage);
    lines.retain(|line| line["step"] != 0);
    lines.iter().map(|line| number(line, metric)).collect()
}

/// Peak learning rate of the stage in the tests' configuration.
fn peak(stage: &str) -> f64 {
    match stage {
        "pretrain" => 1e-2,
        "sft" | "reward" => 5e-3,
        _ => 1e-3,
    }
}

/// Whether the stage's final model differs from its initial one, in the tensors that both have.
fn has_moved(workspace: &Workspace, name: &str, stage: &str, start: &str) -> bool {
    let start = read(&workspace.path(&format!("{start}/model.safetensors")));
    start != workspace.weights(name, stage)
}

#[test]
fn a_stage_of_one_step_takes_it_at_the_peak_and_one_of_two_learns_twice() {
    let workspace = Workspace::trained();
    for stage in ["pretrain", "sft", "dpo", "reward", "ppo"] {
        for schedule in ["linear", "cosine"] {
            let command = |name: &str, flags: &str| {
                let name = format!("{name}-{schedule}-{stage}");
                workspace.succeed(&format!(
                    "{stage} config.toml --set run.name={name} \
                     --set {stage}.lr_scheduler_type={schedule} \
                     --set {stage}.min_lr_ratio=0.0 {flags}"
                ));
                rates(&workspace, &name, stage)
            };
            let one = command("one", &format!("--set {stage}.max_steps=1"));
            assert_eq!(one, [peak(stage)], "{stage} {schedule}");
            let two = command("two", &format!("--set {stage}.max_steps=2"));
            assert_eq!(two[0], peak(stage), "{stage} {schedule}");
            assert!(
                (two[1] / peak(stage) - 0.5).abs() < 1e-12,
                "{stage} {schedule}: {two:?}"
            );
            let warm = command(
                "warm",
                &format!("--set {stage}.max_steps=3 --set {stage}.warmup_steps=1"),
            );
            let shares: Vec<f64> = warm.iter().map(|rate| rate / peak(stage)).collect();
            let gap = shares
                .iter()
                .zip([0.5, 1.0, 0.5])
                .map(|(found, expected)| (found - expected).abs());
            assert!(
                gap.fold(0.0, f64::max) < 1e-12,
                "{stage} {schedule}: {shares:?}"
            );
        }
    }
    for stage in ["sft", "dpo", "ppo"] {
        let start = if stage == "sft" {
            "models/pretrain"
        } else {
            "models/sft"
        };
        assert!(
            has_moved(&workspace, &format!("one-cosine-{stage}"), stage, start),
            "{stage} learned nothing in its step"
        );
        let [one, two] =
            ["one", "two"].map(|name| workspace.weights(&format!("{name}-cosine-{stage}"), stage));
        assert!(one != two, "{stage} learned nothing in its last step");
    }
}

#[test]
fn a_stage_that_changes_nothing_says_so() {
    let workspace = Workspace::trained();
    for stage in SUPERVISED {
        let still = format!("--set {stage}.learning_rate=0.0 --set {stage}.max_steps=1");
        let flags = format!("--set run.name=still-{stage} {still}");
        let ended = workspace.succeed(&format!("{stage} config.toml {flags}"));
        let says = format!("{stage} learning_rate = 0: the model stays as the stage found it");
        assert!(ended.stderr.contains(&says), "{}", ended.stderr);
    }
    assert!(!has_moved(
        &workspace,
        "still-sft",
        "sft",
        "models/pretrain"
    ));
    for (flags, says) in [
        (
            "",
            "ppo learning_rate = 0: the policy stays as the stage found it",
        ),
        (
            "--set ppo.critic_learning_rate=1e-3",
            "ppo learning_rate = 0: the critic alone learns, and the policy stays as",
        ),
    ] {
        let ended = workspace.succeed(&format!(
            "ppo config.toml --fresh --set ppo.learning_rate=0.0 --set ppo.max_steps=1 {flags}"
        ));
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
    let ended = workspace.succeed("sft config.toml --set run.name=moving --set sft.max_steps=1");
    assert!(!ended.stderr.contains("stays as"), "{}", ended.stderr);
}

/// With an absurdly high rate, every loss from the second step on is not finite; with weights that
/// are not finite, every loss is.
#[test]
fn a_stage_whose_steps_are_all_skipped_says_so() {
    let workspace = Workspace::trained();
    workspace.succeed(
        "sft config.toml --set run.name=broken --set sft.max_steps=1 --set sft.learning_rate=1e30",
    );
    let flags = "--set sft.from=runs/broken/sft/final --set sft.max_steps=2";
    let ended = workspace.succeed(&format!("sft config.toml {flags}"));
    let says = "every step was skipped: the model stays as the stage found it";
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
}

/// Skipped steps, in all and in a row, are counted over the processes of a run.
#[test]
fn skipped_steps_are_counted_up_to_the_limit_by_continued_runs_too() {
    let workspace = Workspace::trained();
    workspace.succeed(
        "sft config.toml --set run.name=broken --set sft.max_steps=1 --set sft.learning_rate=1e30",
    );
    let command = |name: &str, most: usize, steps: usize| {
        format!(
            "sft config.toml --set run.name={name} --set sft.from=runs/broken/sft/final \
             --set sft.lr_scheduler_type=constant --set run.max_bad_steps={most} \
             --set sft.max_steps={steps}"
        )
    };
    workspace.succeed(&command("ends", 3, 2));
    let said = ["3 steps in a row up to step 3", "sft.learning_rate"];
    refused(&workspace, &command("ends", 3, 3), &said);
    workspace.succeed(&command("goes-on", 9, 2));
    workspace.succeed(&command("goes-on", 9, 3));
    let mut lines = workspace.metrics("goes-on", "sft");
    lines.retain(|line| line["step"] != 0);
    let skipped: Vec<f64> = lines
        .iter()
        .map(|line| number(line, "train/skipped_steps"))
        .collect();
    assert_eq!(skipped, [1.0, 2.0, 3.0]);
}

/// Sets the embedding of a token of `models/sft` to NaN.
fn break_embedding(workspace: &Workspace, token: &str) {
    let tokenizer = read(&workspace.path("models/sft/tokenizer.json"));
    let tokenizer: Value = serde_json::from_slice(&tokenizer).expect("JSON");
    let id = tokenizer["model"]["vocab"][token].as_u64().expect("an id") as usize;
    let file = workspace.path("models/sft/model.safetensors");
    let mut bytes = read(&file);
    let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
    let embedding = metadata.info("model.embed_tokens.weight").expect("a table");
    let width = 4 * embedding.shape[1];
    let row = 8 + header + embedding.data_offsets.0 + id * width;
    // An `f32` of ones alone is NaN.
    bytes[row..row + width].fill(0xFF);
    fs::write(file, bytes).expect("a writable folder");
}

/// Only one of four pairs has a token whose embedding is not finite: one step of each epoch is
/// skipped, and the steps between start a new count.
#[test]
fn a_step_that_is_taken_forgives_those_skipped_before_it() {
    let workspace = Workspace::trained();
    break_embedding(&workspace, "~");
    let pairs = |i: usize| match i {
        0 => json!({"prompt": "the cat", "chosen": " ~", "rejected": " dog"}),
        i => pair(i),
    };
    workspace.write("pairs.jsonl", &records(0, 4, pairs));
    workspace.succeed(
        "reward config.toml --set run.max_bad_steps=3 --set reward.eval_fraction=0.0 \
         --set reward.eval_steps=0 --set reward.batch_size=1 --set reward.max_steps=16",
    );
    let lines = workspace.metrics("trial", "reward");
    assert_eq!(lines.len(), 16);
    assert_eq!(number(&lines[15], "train/skipped_steps"), 4.0);
}

#[test]
fn a_warm_up_that_outlasts_the_stage_is_said() {
    let workspace = Workspace::trained();
    let flags = "--set sft.max_steps=0 --set sft.max_epochs=0.1 --set sft.warmup_steps=9";
    let ended = workspace.succeed(&format!("sft config.toml {flags}"));
    // A tenth of 12 steps, of 16 records each, over 180 records.
    let says = "sft warmup_steps = 9 with 2 steps in all: the learning rate rises to 20 % of \
                learning_rate";
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
    assert_eq!(rates(&workspace, "trial", "sft"), [5e-4, 1e-3]);
}
