//! An epoch reads each record once, with or without a short last batch. PPO's iterations are always
//! full, and the prompts that this leaves out are reported.

use serde_json::json;

use crate::on_policy::number;
use crate::refusal::refused;
use crate::support::{Line, Workspace, example, lines, pair, prompt, read, records};

/// A learning rate of 0, so that all losses are those of the initial model.
const STILL: &str = "--set KEY.learning_rate=0.0 --set KEY.eval_steps=0";

fn still(stage: &str, flags: &str) -> String {
    format!("{STILL} {flags}").replace("KEY", stage)
}

/// The metrics of each step, in a run with a name made of `name` and `stage`.
fn steps(workspace: &Workspace, name: &str, stage: &str, flags: &str) -> Vec<Line> {
    let name = format!("{name}-{stage}");
    workspace.succeed(&format!(
        "{stage} config.toml --set run.name={name} {flags}"
    ));
    let mut lines = workspace.metrics(&name, stage);
    lines.retain(|line| line["step"] != 0);
    lines
}

fn column(lines: &[Line], name: &str) -> Vec<f64> {
    lines.iter().map(|line| number(line, name)).collect()
}

/// 33 training records, none held out, and one epoch.
fn thirty_three() -> Workspace {
    let workspace = Workspace::trained();
    workspace.write("sft.jsonl", &records(0, 33, example));
    workspace.write("pairs.jsonl", &records(0, 33, pair));
    workspace.write("prompts.jsonl", &records(0, 33, prompt));
    workspace
}

const EPOCH: &str = "--set KEY.max_steps=0 --set KEY.max_epochs=1.0 --set KEY.eval_fraction=0.0 \
                     --set KEY.batch_size=";

#[test]
fn thirty_three_records_by_thirty_two_are_one_epoch_in_two_steps() {
    let workspace = thirty_three();
    for stage in ["sft", "dpo", "reward"] {
        let flags = still(stage, EPOCH);
        let parts = steps(&workspace, "parts", stage, &format!("{flags}32"));
        assert_eq!(column(&parts, "train/epoch"), [0.5, 1.0], "{stage}");
        let whole = steps(&workspace, "whole", stage, &format!("{flags}33"));
        assert_eq!(column(&whole, "train/epoch"), [1.0], "{stage}");
        // Each record was read once.
        let (tokens, all) = (
            column(&parts, "train/tokens"),
            column(&whole, "train/tokens"),
        );
        assert_eq!(tokens[1], all[0], "{stage}");
        let dropped = format!("{flags}32 --set {stage}.dataloader_drop_last=true");
        let dropped = steps(&workspace, "dropped", stage, &dropped);
        assert_eq!(column(&dropped, "train/epoch"), [1.0], "{stage}");
        assert_eq!(column(&dropped, "train/tokens"), tokens[..1], "{stage}");
        assert_eq!(dropped[0]["train/loss"], parts[0]["train/loss"], "{stage}");
    }
}

/// Pairs: each step's loss is the mean over its own pairs, so steps of 32 and 1 pairs make up the
/// mean over all 33.
#[test]
fn a_short_batch_is_normalised_by_its_own_pairs() {
    let workspace = thirty_three();
    let flags = still("reward", EPOCH);
    let parts = steps(&workspace, "parts", "reward", &format!("{flags}32"));
    let whole = steps(&workspace, "whole", "reward", &format!("{flags}33"));
    let (parts, whole) = (
        column(&parts, "train/loss"),
        column(&whole, "train/loss")[0],
    );
    let mean = (32.0 * parts[0] + parts[1]) / 33.0;
    assert!((mean / whole - 1.0).abs() < 1e-6, "{parts:?} {whole}");
    assert!(
        (parts[0] / parts[1] - 1.0).abs() > 1e-3,
        "{parts:?} tell nothing"
    );
}

/// Tokens: with identical records, a whole and a short batch have the same loss.
#[test]
fn a_short_batch_is_normalised_by_its_own_tokens() {
    let workspace = thirty_three();
    workspace.write("sft.jsonl", &records(0, 33, |_| example(4)));
    let flags = still("sft", EPOCH);
    let losses = column(
        &steps(&workspace, "alike", "sft", &format!("{flags}32")),
        "train/loss",
    );
    assert_eq!(losses.len(), 2);
    assert!((losses[0] / losses[1] - 1.0).abs() < 1e-5, "{losses:?}");
}

#[test]
fn fractions_of_an_epoch_are_whole_steps_and_later_epochs_are_shuffled_anew() {
    let workspace = thirty_three();
    let flags = still(
        "reward",
        "--set KEY.eval_fraction=0.0 --set KEY.max_steps=0 --set KEY.batch_size=11",
    );
    let run = |name: &str, epochs: &str| {
        let flags = format!("{flags} --set reward.max_epochs={epochs}");
        steps(&workspace, name, "reward", &flags)
    };
    assert_eq!(run("part", "0.5").len(), 2);
    let lines = run("more", "2.4");
    assert_eq!(lines.len(), 8);
    let losses = column(&lines, "train/loss");
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert_ne!(losses[..3], losses[3..6]);
    let gap = mean(&losses[..3]) / mean(&losses[3..6]) - 1.0;
    assert!(gap.abs() < 1e-6, "each epoch has all pairs: {losses:?}");
}

#[test]
fn a_mixture_has_an_epoch_of_as_many_draws_as_records() {
    let workspace = Workspace::trained();
    workspace.write("few.jsonl", &records(0, 5, example));
    workspace.write("many.jsonl", &records(20, 15, example));
    let flags = "--set sft.data=[{path=\"few.jsonl\",weight=1.0},{path=\"many.jsonl\",weight=1.0}] \
                 --set sft.batch_size=8 --set sft.eval_steps=0";
    let flags = format!(
        "{flags} {}",
        EPOCH
            .replace("KEY", "sft")
            .replace(" --set sft.batch_size=", "")
    );
    let lines = steps(&workspace, "mixed", "sft", &flags);
    assert_eq!(lines.len(), 3, "20 draws, 8 a step");
    assert_eq!(number(&lines[2], "train/epoch"), 1.0);
}

#[test]
fn dropping_everything_is_refused_with_the_counts() {
    let workspace = thirty_three();
    let drop = "--set KEY.dataloader_drop_last=true --set KEY.batch_size=34 \
                --set KEY.eval_fraction=0.0 --set KEY.eval_steps=0";
    for stage in ["sft", "dpo", "reward"] {
        let command = format!("{stage} config.toml {}", drop.replace("KEY", stage));
        let says = [
            &format!("[{stage}]"),
            "dataloader_drop_last",
            "33 records",
            "batch_size = 34",
        ];
        refused(&workspace, &command, &says);
    }
    let command = "pretrain config.toml --set pretrain.dataloader_drop_last=true \
                   --set pretrain.batch_size=100000";
    refused(
        &workspace,
        command,
        &["[pretrain]", "dataloader_drop_last", "batch_size = 100000"],
    );
    let command = "ppo config.toml --set ppo.dataloader_drop_last=true";
    refused(
        &workspace,
        command,
        &[
            "ppo.dataloader_drop_last",
            "always has batch_size sequences",
        ],
    );
}

#[test]
fn an_iteration_of_ppo_is_whole_and_says_what_it_leaves_out_or_repeats() {
    let workspace = thirty_three();
    let says = |flags: &str| {
        let name = format!("run-{}", flags.len());
        let ended = workspace.succeed(&format!("ppo config.toml --set run.name={name} {flags}"));
        (ended.stderr, workspace.metrics(&name, "ppo").len() - 1)
    };
    let epochs = "--set ppo.max_steps=0 --set ppo.max_epochs=2.0";
    let (said, iterations) = says(epochs);
    assert_eq!(iterations, 4, "two of 16 in a pass over 33");
    assert!(
        said.contains("each pass over the 33 prompts leaves out 1"),
        "{said}"
    );
    let (said, _) = says("--set ppo.max_steps=1");
    assert!(!said.contains("leaves out"), "no pass ends: {said}");

    workspace.write("prompts.jsonl", &records(0, 5, prompt));
    let (said, iterations) = says(&format!("{epochs} --set ppo.num_mini_batches=1"));
    assert_eq!(iterations, 2);
    assert!(
        said.contains("takes 16 prompts and there are 5: it takes each of them 3 or 4 times"),
        "{said}"
    );
}

/// A reward program records the prompts that it is given: two iterations of three prompts are one
/// pass over eight prompts, and no prompt comes twice.
#[test]
fn no_pass_over_the_prompts_has_one_twice() {
    let workspace = with_program(&[MODEL, PROGRAM]);
    workspace.succeed(
        "ppo config.toml --set ppo.batch_size=3 --set ppo.num_mini_batches=1 --set ppo.max_steps=8",
    );
    let asked: Vec<Vec<u64>> = lines(&workspace.path("asked.jsonl"))
        .iter()
        .map(numbers)
        .filter(|numbers| numbers[0] < 60)
        .collect();
    assert_eq!(asked.len(), 8);
    let mut passes = Vec::new();
    for pass in asked.chunks(2) {
        let mut pass = pass.concat();
        pass.sort_unstable();
        pass.dedup();
        assert_eq!(pass.len(), 6, "{asked:?}");
        passes.push(pass);
    }
    assert!(
        passes.iter().any(|pass| *pass != passes[0]),
        "the same ones are left out: {passes:?}"
    );
}

/// All completions score the same, so the whole batch of five prompts is drawn again: the three
/// prompts that are left in the pass come before the ones that the iteration already has.
#[test]
fn replacements_are_prompts_that_the_iteration_does_not_have_yet() {
    let workspace = with_program(&[PROGRAM]);
    workspace.succeed(
        "ppo config.toml --set ppo.batch_size=10 --set ppo.num_samples_per_prompt=2 \
         --set ppo.num_mini_batches=1 --set ppo.max_steps=1 --set ppo.dynamic_sampling=1 \
         --set ppo.eval_prompts= --set ppo.lexicon= --set ppo.eval_samples=256 \
         --set ppo.eval_steps=0",
    );
    let asked = lines(&workspace.path("asked.jsonl"));
    assert_eq!(asked.len(), 2);
    let mut numbers: Vec<u64> = asked.iter().flat_map(numbers).collect();
    assert_eq!(numbers.len(), 20);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (0..8).collect::<Vec<u64>>());
}

/// Trained models, eight numbered prompts, and a configuration whose PPO has these rewards.
fn with_program(rewards: &[&str]) -> Workspace {
    let workspace = Workspace::trained();
    let numbered = |i: usize| json!({"prompt": prompt(i)["prompt"], "number": i});
    workspace.write("prompts.jsonl", &records(0, 8, numbered));
    workspace.write("prompts_eval.jsonl", &records(60, 8, numbered));
    workspace.write("note.sh", NOTE);
    let config = String::from_utf8(read(&workspace.path("config.toml"))).expect("UTF-8");
    let config = config.replace("reward_model = \"models/reward\"\n", "");
    workspace.write("config.toml", &(config + &rewards.concat()));
    workspace
}

/// Records each question and answers with as many numbers as it has completions.
const NOTE: &str = r#"while read -r line; do
  printf '%s\n' "$line" >> asked.jsonl
  scores=$(printf '%s' "$line" | grep -o '"completion":' | sed 's/.*/0.25/' | tr '\n' ',')
  echo "[${scores%,}]"
done
"#;

const MODEL: &str = "\n[[ppo.rewards]]\ntype = \"model\"\npath = \"models/reward\"\n";
const PROGRAM: &str = "\n[[ppo.rewards]]\ntype = \"program\"\ncommand = [\"sh\", \"note.sh\"]\n";

/// The numbers in the prompts of a question.
fn numbers(question: &Line) -> Vec<u64> {
    let completions = question["completions"].as_array().expect("a list");
    let number = |completion: &serde_json::Value| completion["fields"]["number"].as_u64();
    completions
        .iter()
        .map(|c| number(c).expect("a number"))
        .collect()
}
