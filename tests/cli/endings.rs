//! The tokens that end a completion and the position of a reward model's score, by the files of a
//! model folder, against transformers' numbers.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Workspace, fixture, floats, ids};

/// Tolerance between two `f32` forward passes with other orders of summation.
const TOLERANCE: f32 = 2e-5;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/score_position")
        .join(name)
}

fn expected() -> Value {
    let text = fs::read_to_string(golden("expected.json")).expect("golden numbers");
    serde_json::from_str(&text).expect("JSON")
}

/// Scores of the golden sequences by the model in a folder.
fn scores(workspace: &Workspace, folder: &str, flags: &str) -> Vec<f32> {
    let rows = expected()[folder]["ids"].as_array().expect("rows").clone();
    let lines: String = rows
        .iter()
        .map(|ids| json!({ "ids": ids }).to_string() + "\n")
        .collect();
    workspace.write("data.jsonl", &lines);
    let model = golden(folder);
    let lines = workspace.lines(&format!(
        "score --model {} --data data.jsonl {flags}",
        model.display()
    ));
    lines
        .iter()
        .flat_map(|line| line["score"].to_string().parse::<f32>())
        .collect()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let far = |(a, b): (&f32, &f32)| (a - b).abs() > TOLERANCE;
    assert!(
        !found.iter().zip(expected).any(far),
        "{what}: {found:?}, not {expected:?}"
    );
}

/// transformers' scores of the same sequences: one at a time, and in batches padded on either side.
#[test]
fn reward_models_are_read_where_transformers_reads_them() {
    let (workspace, expected) = (Workspace::new(), expected());
    for folder in ["pad_is_eos", "other_pad", "no_pad", "adapter"] {
        let found = scores(&workspace, folder, "");
        for padded in ["alone", "right", "left"] {
            if expected[folder].get(padded).is_some() {
                let wanted = floats(&expected[folder], padded);
                assert_close(&found, &wanted, &format!("{folder}, {padded}"));
            }
        }
    }
}

#[test]
fn the_flag_reads_elsewhere_and_the_place_is_said() {
    let (workspace, expected) = (Workspace::new(), expected());
    let at = |folder: &str| floats(&expected[folder], "alone");
    assert_close(
        &scores(&workspace, "pad_is_eos", "--score-at eos"),
        &at("other_pad"),
        "eos",
    );
    let found = scores(&workspace, "no_pad", "--score-at last_non_pad");
    assert_close(
        &found,
        &at("pad_is_eos"),
        "EOS pads where nothing else is named",
    );
    for (folder, says) in [
        ("pad_is_eos", "the last token that is not 2"),
        ("other_pad", "scores at the last token (score_at"),
    ] {
        let model = golden(folder);
        let flags = format!(
            "score --model {} --data data.jsonl --out o.jsonl",
            model.display()
        );
        let ended = workspace.run(&flags);
        assert!(ended.stderr.contains(says), "{folder}: {}", ended.stderr);
    }
    let language = format!(
        "score --model {} --data data.jsonl --out o.jsonl --score-at eos",
        fixture("llama").display()
    );
    let ended = workspace.run(&language);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("--score-at is for reward models"),
        "{}",
        ended.stderr
    );
}

/// A merged reward model is read at the same position as its adapter was.
#[test]
fn a_merged_reward_model_keeps_its_place() {
    let (workspace, expected) = (Workspace::new(), expected());
    let [base, adapter] = ["base", "adapter"].map(golden);
    let ended = workspace.run(&format!(
        "export --model {} --adapter {} --out merged",
        base.display(),
        adapter.display()
    ));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let rows = expected["adapter"]["ids"].as_array().expect("rows");
    let lines: String = rows
        .iter()
        .map(|ids| json!({ "ids": ids }).to_string() + "\n")
        .collect();
    workspace.write("data.jsonl", &lines);
    let found = workspace.lines("score --model merged --data data.jsonl");
    let found: Vec<f32> = found
        .iter()
        .flat_map(|line| line["score"].to_string().parse::<f32>())
        .collect();
    assert_close(&found, &floats(&expected["adapter"], "alone"), "merged");
    let config = fs::read_to_string(workspace.path("merged/config.json")).expect("a file");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(config["pad_token_id"], 2);
}

/// A folder with the model `llama` and a tokenizer whose EOS is token 5 and whose template closes a
/// turn with token 6; `config.json` says 2, `generation_config.json` says 7.
fn chat_folder(workspace: &Workspace) {
    workspace.copy_model("llama");
    let special = |id: u64, content: &str| {
        json!({ "id": id, "content": content,
            "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let words = (0..128).map(|id| (format!("t{id}"), json!(id)));
    let mut vocabulary: serde_json::Map<String, Value> = words.collect();
    for (id, name) in [(5, "<eos>"), (6, "<end>")] {
        vocabulary.remove(&format!("t{id}"));
        vocabulary.insert(name.to_owned(), json!(id));
    }
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(5, "<eos>"), special(6, "<end>")],
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "t0" },
        "pre_tokenizer": { "type": "WhitespaceSplit" },
    });
    workspace.write("model/tokenizer.json", &tokenizer.to_string());
    let template = "{% for m in messages %}{{ m.content }} <end> {% endfor %}";
    let config = json!({ "eos_token": "<eos>", "chat_template": template });
    workspace.write("model/tokenizer_config.json", &config.to_string());
    workspace.write(
        "model/generation_config.json",
        &json!({ "eos_token_id": 7 }).to_string(),
    );
}

/// Among many samples of a model with random weights, none goes on after an ending token, and each
/// of the four ending tokens ends some of them.
#[test]
fn completions_end_at_the_ends_of_both_files_and_of_the_tokenizer() {
    let workspace = Workspace::new();
    chat_folder(&workspace);
    workspace.write("prompts.jsonl", "{\"prompt_ids\": [9, 10]}\n");
    let flags = "generate --model model --prompts prompts.jsonl --n 200 --max-new-tokens 60 \
                 --temperature 3";
    let lines = workspace.lines(flags);
    let ends = [2_u32, 5, 6, 7];
    for line in &lines {
        let ids = ids(line, "completion_ids");
        let (last, before) = ids.split_last().expect("a token");
        assert!(
            !before.iter().any(|id| ends.contains(id)),
            "{ids:?} goes on after an end"
        );
        assert_eq!(line["finish_reason"] == "stop", ends.contains(last));
    }
    for end in ends {
        let ended = |line: &&Value| ids(line, "completion_ids").last() == Some(&end);
        assert!(lines.iter().any(|line| ended(&line)), "none ended at {end}");
    }
    let free = workspace.lines(&format!("{flags} --ignore-eos"));
    assert!(free.iter().all(|line| line["finish_reason"] == "length"));
}

#[test]
fn a_model_that_never_ends_and_settings_that_are_not_read_are_said() {
    let workspace = Workspace::new();
    workspace.copy_model("llama");
    let generation = json!({
        "eos_token_id": 2, "temperature": 0.5, "top_p": 1.0,
        "repetition_penalty": 1.1, "do_sample": true });
    workspace.write("model/generation_config.json", &generation.to_string());
    workspace.write("prompts.jsonl", "{\"prompt_ids\": [9, 10]}\n");
    let flags =
        "generate --model model --prompts prompts.jsonl --out o.jsonl --max-new-tokens 1 --greedy";
    let ended = workspace.run(flags);
    assert!(
        ended.stderr.contains("none of 1 completions ended"),
        "{}",
        ended.stderr
    );
    assert!(
        ended
            .stderr
            .contains("temperature = 0.5, repetition_penalty = 1.1"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("top_p"), "{}", ended.stderr);
    let ended = workspace.run(&format!("{flags} --ignore-eos --temperature 0.5"));
    assert!(!ended.stderr.contains("none of"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("temperature ="), "{}", ended.stderr);
}
