//! Preference tuning without a reward model: every loss learns, the first step has the value of the
//! formulas, the reference's log-probs are computed once, and mistakes are named.

use std::fs;

use serde_json::json;

use crate::on_policy::number;
use crate::refusal::refused;
use crate::support::{Line, Workspace, pair, records};

/// Each loss with its flags. IPO's β of ½ aims at a difference of log-ratios of 1 per token.
const LOSSES: [(&str, &str); 4] = [
    ("sigmoid", ""),
    ("sigmoid", "--set dpo.label_smoothing=0.1"),
    ("ipo", "--set dpo.beta=0.5"),
    ("simpo", "--set dpo.beta=2.0 --set dpo.simpo_gamma=1.0"),
];

const COMPUTED: &str = "under the reference, computed once";

#[test]
fn every_loss_raises_the_held_out_margin() {
    let workspace = Workspace::trained();
    for (i, (loss, flags)) in LOSSES.iter().enumerate() {
        let name = format!("loss-{i}");
        workspace.succeed(&format!(
            "dpo config.toml --set run.name={name} --set dpo.loss_type={loss} {flags}"
        ));
        let metrics = workspace.metrics(&name, "dpo");
        let (before, after) = (&metrics[0], metrics.last().expect("a line"));
        let rises = |measure: &str| number(after, measure) - number(before, measure);
        assert!(rises("eval/rewards/margins") > 0.1, "{loss}: {after:?}");
        assert!(rises("eval/loss") < -0.05, "{loss}: {before:?} {after:?}");
        let accuracy = number(after, "eval/rewards/accuracies");
        assert!(accuracy > 0.95, "{loss}: {accuracy}");
        let gap =
            |line: &Line| number(line, "eval/logps/chosen") - number(line, "eval/logps/rejected");
        assert!(gap(after) > gap(before) + 1.0, "{loss}");
        let kept = workspace.stage(&name, "dpo").join("reference.safetensors");
        assert_eq!(kept.exists(), *loss != "simpo", "{loss}");
    }
}

/// The policy starts equal to its reference, and its log-probs have the same bits however they are
/// packed.
#[test]
fn the_first_step_is_exactly_where_policy_and_reference_agree() {
    let workspace = Workspace::trained();
    for (loss, flags, expected) in [
        ("sigmoid", "", 2f64.ln()),
        ("ipo", "--set dpo.beta=0.5", 1.0),
    ] {
        let settings = "--set dpo.max_steps=1 --set dpo.micro_batch_tokens=200";
        workspace.succeed(&format!(
            "dpo config.toml --fresh --set dpo.loss_type={loss} {flags} {settings}"
        ));
        let metrics = workspace.metrics("trial", "dpo");
        let (before, first) = (&metrics[0], &metrics[1]);
        for (line, of) in [(before, "eval/"), (first, "")] {
            for reward in ["chosen", "rejected", "margins", "accuracies"] {
                assert_eq!(
                    number(line, &format!("{of}rewards/{reward}")),
                    0.0,
                    "{loss}"
                );
            }
        }
        // Micro-batches pass on their shares of the loss in `f32`.
        assert!(
            (number(first, "train/loss") - expected).abs() < 1e-6,
            "{first:?}"
        );
        assert!(
            (number(before, "eval/loss") - expected).abs() < 1e-12,
            "{before:?}"
        );
        assert!(number(first, "train/grad_norm") > 0.0);
    }
}

#[test]
fn micro_batches_change_nothing_but_the_order_of_sums() {
    let workspace = Workspace::trained();
    let run = |name: &str, tokens: usize| {
        workspace.succeed(&format!(
            "dpo config.toml --set run.name={name} --set dpo.micro_batch_tokens={tokens} \
             --set dpo.max_steps=8"
        ));
        workspace.metrics(name, "dpo")
    };
    for (whole, cut) in run("whole", 4096).iter().zip(&run("cut", 96)) {
        for name in [
            "train/loss",
            "train/grad_norm",
            "rewards/margins",
            "logps/chosen",
            "logps/rejected",
        ] {
            if whole["step"] == 0 {
                continue;
            }
            let (whole, cut) = (number(whole, name), number(cut, name));
            let gap = (whole - cut).abs() / whole.abs().max(1.0);
            assert!(gap < 1e-4, "{name}: {whole} and {cut}");
        }
    }
}

#[test]
fn the_reference_is_asked_once() {
    let workspace = Workspace::trained();
    let ask = |name: &str, steps: usize| {
        let flags = "--set dpo.lr_scheduler_type=constant --set dpo.eval_steps=1000";
        let run = format!("--set run.name={name} --set dpo.max_steps={steps}");
        workspace
            .succeed(&format!("dpo config.toml {run} {flags}"))
            .stderr
    };
    let kept = workspace
        .stage("raised", "dpo")
        .join("reference.safetensors");
    let first = ask("raised", 3);
    assert!(
        first.contains(&format!("dpo: log-probs of 200 pairs {COMPUTED}\n")),
        "{first}"
    );
    let bytes = fs::read(&kept).expect("log-probs");
    let second = ask("raised", 6);
    assert!(!second.contains(COMPUTED), "{second}");

    // Lost or damaged log-probs are computed again to the same bits, though the policy has moved.
    fs::remove_file(&kept).expect("a file to remove");
    assert!(ask("raised", 9).contains(COMPUTED));
    assert!(fs::read(&kept).expect("log-probs") == bytes);
    fs::write(&kept, &bytes[..bytes.len() - 8]).expect("a writable file");
    let damaged = ask("raised", 12);
    assert!(
        damaged.contains("the file of an earlier process is damaged"),
        "{damaged}"
    );
    assert!(fs::read(&kept).expect("log-probs") == bytes);

    ask("whole", 12);
    assert!(workspace.weights("raised", "dpo") == workspace.weights("whole", "dpo"));
}

#[test]
fn early_stopping_goes_back_to_the_best() {
    let workspace = Workspace::trained();
    // The held-out pairs are the reverse of the training pairs: the first step is the best.
    let reversed = |i: usize| {
        let mut pair = pair(i);
        let chosen = pair["chosen"].take();
        pair["chosen"] = pair["rejected"].take();
        pair["rejected"] = chosen;
        pair
    };
    workspace.write("held_out.jsonl", &records(0, 20, reversed));
    let flags = "--set dpo.eval_fraction=0.0 --set dpo.eval_data=held_out.jsonl \
                 --set dpo.lr_scheduler_type=constant";
    let patient = "--set dpo.early_stopping_patience=2 --set dpo.eval_steps=2";
    workspace.succeed(&format!("dpo config.toml {flags} {patient}"));
    let metrics = workspace.metrics("trial", "dpo");
    assert_eq!(metrics.last().expect("a line")["step"], 6);
    workspace.succeed(&format!(
        "dpo config.toml {flags} --set run.name=short --set dpo.max_steps=2"
    ));
    assert!(workspace.weights("trial", "dpo") == workspace.weights("short", "dpo"));
}

#[test]
fn mistakes_are_named() {
    let workspace = Workspace::trained();
    let run = "dpo config.toml --set dpo.eval_fraction=0.0 --set dpo.eval_steps=0";
    workspace.write("pairs.jsonl", &records(0, 2, |_| json!({"prompt": "a"})));
    refused(
        &workspace,
        run,
        &["stage dpo", "[dpo] data", "pairs.jsonl:1", "chosen"],
    );
    workspace.write(
        "pairs.jsonl",
        &records(0, 2, |_| json!({"chosen": "", "rejected": "b"})),
    );
    let says = [
        "stage dpo",
        "[dpo] data",
        "pairs.jsonl:1",
        "no prompt",
        "give it a `prompt`",
    ];
    refused(&workspace, run, &says);
    // If it is held out of the same file, the error names it in the same way.
    let held_out = "dpo config.toml --set dpo.eval_fraction=0.5";
    refused(&workspace, held_out, &says);
    workspace.write("pairs.jsonl", &records(0, 20, pair));
    let scorer = format!("{run} --set dpo.from=models/reward");
    refused(
        &workspace,
        &scorer,
        &["stage dpo", "models/reward", "a reward model"],
    );
}

#[test]
fn other_pairs_do_not_continue_a_run() {
    let workspace = Workspace::trained();
    workspace.succeed("dpo config.toml --set dpo.max_steps=2 --set dpo.lr_scheduler_type=constant");
    workspace.write("pairs.jsonl", &records(50, 200, pair));
    refused(
        &workspace,
        "dpo config.toml --set dpo.max_steps=4 --set dpo.lr_scheduler_type=constant",
        &["stage dpo was started with other contents of dpo.data (pairs.jsonl)"],
    );
}
