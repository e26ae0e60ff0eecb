//! `score` and `generate` on models without a tokenizer, against numbers made with PyTorch and
//! transformers (`tests/golden/make_fixtures.py`), and against each other.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use kernels::host::product::ProductKernel;
use serde_json::{Value, json};

use crate::support::{Workspace, fixture, floats, ids};

/// Tolerance of the fixtures, which are `f32` on both sides.
const TOLERANCE: f32 = 1e-4;

struct Expected {
    tensors: HashMap<String, Tensor>,
    /// The input rows without their padding.
    rows: Vec<Vec<u32>>,
}

impl Expected {
    fn read(model: &str) -> Self {
        let path = fixture(model).join("expected.safetensors");
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).expect("a fixture");
        let table = tensors["input_ids"].to_vec2::<i64>().expect("ids");
        let lengths = tensors["lengths"].to_vec1::<i64>().expect("lengths");
        let row =
            |(row, n): (&Vec<i64>, i64)| row[..n as usize].iter().map(|&i| i as u32).collect();
        let rows = table.iter().zip(lengths).map(row).collect();
        Self { tensors, rows }
    }

    fn row(&self, name: &str, row: usize) -> Vec<f32> {
        self.tensors[name]
            .get(row)
            .and_then(|t| t.to_vec1())
            .expect("a row")
    }
}

/// A JSON line for each row: `{field: ids}`.
fn jsonl(field: &str, rows: &[Vec<u32>]) -> String {
    rows.iter()
        .map(|row| json!({field: row}).to_string() + "\n")
        .collect()
}

fn assert_close(found: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let gap = found
        .iter()
        .zip(wanted)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(gap < TOLERANCE, "{what}: {gap}");
}

/// Command-line arguments: `flags` with the fixture `model`.
fn with_model(model: &str, flags: &str) -> String {
    let (command, rest) = flags.split_once(' ').unwrap_or((flags, ""));
    format!("{command} --model {} {rest}", fixture(model).display())
}

#[test]
fn a_language_model_scores_tokens() {
    let (workspace, expected) = (Workspace::new(), Expected::read("llama"));
    workspace.write("data.jsonl", &jsonl("ids", &expected.rows));
    let lines = workspace.lines(&with_model("llama", "score --data data.jsonl --batch 2"));
    assert_eq!(lines.len(), expected.rows.len());
    for (i, (line, row)) in lines.iter().zip(&expected.rows).enumerate() {
        assert_eq!(line["index"], i);
        assert_eq!(&ids(line, "ids"), row);
        let log_probs = &expected.row("logprobs", i)[..row.len() - 1];
        assert_close(&floats(line, "logprobs"), log_probs, "logprobs");
        let entropy = &expected.row("entropy", i)[..row.len()];
        assert_close(&floats(line, "entropy"), entropy, "entropy");
    }
    assert_eq!(
        workspace.names(),
        ["data.jsonl", "out.jsonl"],
        "something was left beside"
    );
}

#[test]
fn a_single_token_has_an_entropy_and_no_log_prob() {
    let workspace = Workspace::new();
    workspace.write("data.jsonl", "{\"ids\": [5]}");
    let lines = workspace.lines(&with_model("llama", "score --data data.jsonl"));
    assert!(floats(&lines[0], "logprobs").is_empty());
    assert_eq!(floats(&lines[0], "entropy").len(), 1);
}

#[test]
fn a_reward_model_scores_the_last_token() {
    let (workspace, expected) = (Workspace::new(), Expected::read("llama_reward"));
    workspace.write("data.jsonl", &jsonl("ids", &expected.rows));
    let lines = workspace.lines(&with_model(
        "llama_reward",
        "score --data data.jsonl --batch 2",
    ));
    let scores: Vec<f32> = lines
        .iter()
        .map(|line| line["score"].to_string().parse().expect("a score"))
        .collect();
    let wanted = expected.tensors["scores"].to_vec1::<f32>().expect("scores");
    assert_close(&scores, &wanted, "scores");
    let fields = lines[2].as_object().expect("an object");
    assert_eq!(fields.keys().collect::<Vec<_>>(), ["index", "score"]);
}

#[test]
fn greedy_continuations_are_transformers() {
    let (workspace, expected) = (Workspace::new(), Expected::read("llama"));
    workspace.write("prompts.jsonl", &jsonl("prompt_ids", &expected.rows));
    let flags = "generate --prompts prompts.jsonl --greedy --ignore-eos --max-new-tokens 20";
    let lines = workspace.lines(&with_model("llama", flags));
    let tokens = expected.tensors["greedy"].to_vec2::<i64>().expect("tokens");
    for (i, line) in lines.iter().enumerate() {
        assert_eq!((&line["index"], &line["sample"]), (&json!(i), &json!(0)));
        assert_eq!(ids(line, "prompt_ids"), expected.rows[i]);
        assert_eq!(line["completion_ids"], json!(tokens[i]));
        assert_eq!(line["completion"], Value::Null, "there is no tokenizer");
        assert_eq!(line["finish_reason"], "length");
        assert_close(
            &floats(line, "logprobs"),
            &expected.row("greedy_logprobs", i),
            "logprobs",
        );
    }
}

#[test]
fn stop_ids_end_a_completion_unless_ignored() {
    let (workspace, expected) = (Workspace::new(), Expected::read("llama"));
    workspace.copy_model("llama");
    let greedy = expected.tensors["greedy"].to_vec2::<i64>().expect("tokens");
    let stop = greedy[0][5];
    workspace.write(
        "model/generation_config.json",
        &json!({"eos_token_id": [stop]}).to_string(),
    );
    workspace.write("prompts.jsonl", &jsonl("prompt_ids", &expected.rows[..1]));
    let flags = "generate --model model --prompts prompts.jsonl --greedy --max-new-tokens 20";
    let line = &workspace.lines(flags)[0];
    let end = greedy[0]
        .iter()
        .position(|&id| id == stop)
        .map_or(20, |at| at + 1);
    assert_eq!(
        line["completion_ids"],
        json!(greedy[0][..end]),
        "the stop id is kept"
    );
    assert_eq!(line["finish_reason"], "stop");
    let line = &workspace.lines(&format!("{flags} --ignore-eos"))[0];
    assert_eq!(line["completion_ids"], json!(greedy[0]));
}

/// Log-probs sampled at temperature 1 are the ones that `score` computes, bit for bit through both
/// files. Nothing depends on the batch, each prompt has its own limits, and the order is that of
/// the input.
#[test]
fn samples_agree_with_score_whatever_the_batch() {
    for arithmetic in ["portable", "fast"] {
        samples_agree_with_score(&format!("--arithmetic {arithmetic}"));
    }
}

/// On a processor with a matrix unit the flag changes the last bits of results; on others it
/// changes nothing.
#[test]
fn scores_are_computed_in_the_arithmetic_that_is_asked_for() {
    let (workspace, expected) = (Workspace::new(), Expected::read("llama"));
    workspace.write("data.jsonl", &jsonl("ids", &expected.rows));
    let score = |flags: &str| {
        let lines = workspace.lines(&with_model(
            "llama",
            &format!("score --data data.jsonl {flags}"),
        ));
        let of_lines = lines.iter().flat_map(|line| floats(line, "logprobs"));
        of_lines.collect::<Vec<f32>>()
    };
    let [default, portable, fast] = ["", "--arithmetic portable", "--arithmetic fast"].map(score);
    assert_eq!(default, portable);
    let has_unit = ProductKernel::fastest() != ProductKernel::Chains;
    assert_eq!(fast != portable, has_unit);
    assert_close(&fast, &portable, "logprobs");
}

fn samples_agree_with_score(arithmetic: &str) {
    let workspace = Workspace::new();
    let prompts = "{\"prompt_ids\": [5, 6, 7], \"max_new_tokens\": 9}\n\n{\"prompt_ids\": [8]}\n";
    workspace.write("prompts.jsonl", prompts);
    let flags = format!(
        "generate --prompts prompts.jsonl --n 3 --max-new-tokens 4 --ignore-eos \
         --seed 7 {arithmetic}"
    );
    let sampled = workspace.lines(&with_model("llama", &format!("{flags} --batch 1")));
    assert_eq!(
        sampled,
        workspace.lines(&with_model("llama", &format!("{flags} --batch 5")))
    );
    let places: Vec<_> = sampled
        .iter()
        .map(|l| (l["index"].as_u64(), l["sample"].as_u64()))
        .collect();
    let place = |i: u64| (Some(i / 3), Some(i % 3));
    assert_eq!(places, (0..6).map(place).collect::<Vec<_>>());
    assert_ne!(sampled[0]["completion_ids"], sampled[1]["completion_ids"]);
    let whole = |line| [ids(line, "prompt_ids"), ids(line, "completion_ids")].concat();
    let rows: Vec<Vec<u32>> = sampled.iter().map(whole).collect();
    workspace.write("data.jsonl", &jsonl("ids", &rows));
    let scored = workspace.lines(&with_model(
        "llama",
        &format!("score --data data.jsonl {arithmetic}"),
    ));
    for (sampled, scored) in sampled.iter().zip(&scored) {
        let length = if sampled["index"] == 0 { 9 } else { 4 };
        assert_eq!(ids(sampled, "completion_ids").len(), length);
        let all = floats(scored, "logprobs");
        assert_eq!(floats(sampled, "logprobs"), all[all.len() - length..]);
    }
}
