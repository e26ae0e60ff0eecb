//! The example of a verifiable reward: its data is correct, and its configurations run from the
//! first stage to the last.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::on_policy::number;
use crate::support::{Line, lines};

/// Flags that shorten each stage to two steps.
const SHORT: &str = "--set ppo.max_steps=2 --set ppo.batch_size=32 --set ppo.eval_samples=8";

const SHORT_START: &str = "--set pretrain.max_steps=2 --set pretrain.warmup_steps=0 \
                           --set sft.max_steps=2 --set sft.warmup_steps=0";

fn data(name: &str) -> Vec<Line> {
    lines(&Path::new("configs/data").join(name))
}

fn text<'a>(record: &'a Line, key: &str) -> &'a str {
    let value = record.get(key).and_then(Value::as_str);
    value.unwrap_or_else(|| panic!("no text {key} in {record:?}"))
}

/// `a+b=` → the two numbers, in ascending order.
fn numbers(record: &Line) -> (u32, u32) {
    let prompt = text(record, "prompt");
    let sum = prompt.strip_suffix('=').and_then(|sum| sum.split_once('+'));
    let (a, b) = sum.unwrap_or_else(|| panic!("no sum: {prompt}"));
    let number = |digits: &str| digits.parse().unwrap_or_else(|e| panic!("{prompt}: {e}"));
    let (a, b): (u32, u32) = (number(a), number(b));
    (a.min(b), a.max(b))
}

/// The sums of a file after checking their answers, whose last digit comes first.
fn checked(file: &str, answer: &str) -> HashSet<(u32, u32)> {
    let records = data(file);
    for record in &records {
        let (a, b) = numbers(record);
        let found: String = text(record, answer).chars().rev().collect();
        assert_eq!(found, (a + b).to_string(), "{file}: {record:?}");
    }
    let prompts: HashSet<&str> = records.iter().map(|r| text(r, "prompt")).collect();
    assert_eq!(prompts.len(), records.len(), "{file} repeats a sum");
    records.iter().map(numbers).collect()
}

#[test]
fn answers_are_right_and_no_file_knows_another_ones_sums() {
    let sft = checked("arithmetic_sft.jsonl", "completion");
    let prompts = checked("arithmetic_prompts.jsonl", "answer");
    let held_out = checked("arithmetic_prompts_eval.jsonl", "answer");
    assert!(held_out.is_disjoint(&sft) && held_out.is_disjoint(&prompts));
    assert!(sft.is_disjoint(&prompts));
    // Every sum of two two-digit numbers is in one of the files.
    let all = sft.len() + prompts.len() + held_out.len();
    assert_eq!(all, 90 * 91 / 2);
}

/// Runs a configuration of this repository, with its runs in `folder`.
#[track_caller]
fn run(config: &str, folder: &Path, flags: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_collimate"))
        .args(["run", config])
        .args(flags.split_whitespace())
        .args(["--set", &format!("run.dir={}", folder.display())])
        .stdin(Stdio::null())
        .output()
        .expect("the binary");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{config}: {stderr}");
}

#[track_caller]
fn assert_scored(folder: &Path, run: &str) {
    let metrics = lines(&folder.join(run).join("ppo/metrics.jsonl"));
    let evaluations: Vec<&Line> = metrics
        .iter()
        .filter(|line| line.contains_key("eval/score"))
        .collect();
    assert_eq!(evaluations.len(), 2, "{metrics:?}");
    for line in evaluations {
        assert_eq!(
            number(line, "eval/reward/exact"),
            number(line, "eval/score")
        );
    }
    let samples = lines(&folder.join(run).join("ppo/samples.jsonl"));
    let held_out = data("arithmetic_prompts_eval.jsonl");
    for sample in samples {
        let record = &held_out[number(&sample, "index") as usize];
        let right = text(&sample, "completion").trim() == text(record, "answer");
        assert_eq!(number(&sample, "score"), f64::from(u8::from(right)));
    }
}

#[test]
fn both_configurations_of_the_example_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    run(
        "configs/arithmetic.toml",
        folder,
        &format!("{SHORT} {SHORT_START}"),
    );
    assert_scored(folder, "arithmetic");
    let start = folder.join("arithmetic/sft/final");
    let flags = format!("{SHORT} --set ppo.from={}", start.display());
    run("configs/arithmetic_ppo.toml", folder, &flags);
    assert_scored(folder, "arithmetic_ppo");
}
