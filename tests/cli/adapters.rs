//! Adapters on the command line: `--adapter`, a PEFT folder as the model, and `export`, on folders
//! that PEFT saved (`tests/golden/make_adapters.py`).

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{D, Device, IndexOp, Tensor};
use serde_json::{Value, json};

use crate::support::{Workspace, fixture, floats, ids};

/// Tolerance of log-probs; the fixtures are `f32` on both sides.
const TOLERANCE: f32 = 1e-4;

fn adapter(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/adapters")
        .join(name)
}

/// The rows of the fixture without padding, as one JSON line each.
fn data(model: &str) -> (Vec<Vec<u32>>, String) {
    let file = fixture(model).join("expected.safetensors");
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).expect("a fixture");
    let table = tensors["input_ids"].to_vec2::<i64>().expect("ids");
    let lengths = tensors["lengths"].to_vec1::<i64>().expect("lengths");
    let row = |(row, n): (&Vec<i64>, i64)| row[..n as usize].iter().map(|&i| i as u32).collect();
    let rows: Vec<Vec<u32>> = table.iter().zip(lengths).map(row).collect();
    let text = rows
        .iter()
        .map(|row| json!({"ids": row}).to_string() + "\n");
    let text = text.collect();
    (rows, text)
}

fn expected(name: &str, tensor: &str) -> Tensor {
    let file = adapter(name).join("expected.safetensors");
    let mut tensors = candle_core::safetensors::load(file, &Device::Cpu).expect("a fixture");
    tensors.remove(tensor).expect("a tensor")
}

/// Log-probs of each row's tokens, from PEFT's logits.
fn log_probs(name: &str, rows: &[Vec<u32>]) -> candle_core::Result<Vec<Vec<f32>>> {
    let logits = expected(name, "logits");
    let normaliser = logits.log_sum_exp(D::Minus1)?;
    let of = |(i, row): (usize, &Vec<u32>)| {
        let next = row[1..].iter().enumerate();
        let of = |(t, &token): (usize, &u32)| {
            let logit = logits.i((i, t, token as usize))?.to_scalar::<f32>()?;
            Ok(logit - normaliser.i((i, t))?.to_scalar::<f32>()?)
        };
        next.map(of).collect()
    };
    rows.iter().enumerate().map(of).collect()
}

fn assert_close(lines: &[Value], wanted: &[Vec<f32>], what: &str) {
    assert_eq!(lines.len(), wanted.len(), "{what}");
    for (line, wanted) in lines.iter().zip(wanted) {
        let found = floats(line, "logprobs");
        assert_eq!(found.len(), wanted.len(), "{what}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(
                (found - wanted).abs() < TOLERANCE,
                "{what}: {found} for {wanted}"
            );
        }
    }
}

#[test]
fn scores_and_completions_are_those_of_the_merged_model() {
    let workspace = Workspace::new();
    for name in ["llama", "gpt2"] {
        let (rows, text) = data(name);
        workspace.write("data.jsonl", &text);
        workspace.write("prompts.jsonl", &text.replace("\"ids\"", "\"prompt_ids\""));
        let (base, adapter) = (fixture(name), adapter(name));
        let (base, adapter) = (base.display(), adapter.display());
        let merge = format!("export --model {base} --adapter {adapter} --out merged-{name}");
        let ended = workspace.run(&merge);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let wanted = log_probs(name, &rows).expect("logits");
        let generate = "generate --prompts prompts.jsonl --greedy --max-new-tokens 12";
        let mut completions = Vec::new();
        for model in [
            format!("--model {base} --adapter {adapter}"),
            format!("--model {adapter}"),
            format!("--model merged-{name}"),
        ] {
            let lines = workspace.lines(&format!("score --data data.jsonl {model}"));
            assert_close(&lines, &wanted, &model);
            let lines = workspace.lines(&format!("{generate} {model}"));
            completions.push(
                lines
                    .iter()
                    .map(|l| ids(l, "completion_ids"))
                    .collect::<Vec<_>>(),
            );
        }
        assert_eq!(completions[0], completions[1]);
        assert_eq!(completions[0], completions[2]);
    }
}

#[test]
fn a_reward_adapter_scores() {
    let workspace = Workspace::new();
    let (rows, text) = data("llama");
    workspace.write("data.jsonl", &text);
    let (base, adapter) = (fixture("llama"), adapter("llama_reward"));
    let (base, adapter) = (base.display(), adapter.display());
    let merge = format!("export --model {base} --adapter {adapter} --out merged");
    assert_eq!(workspace.run(&merge).code, Some(0));
    let again = workspace.run(&merge);
    assert_eq!(again.code, Some(1));
    assert!(
        again.stderr.contains("not an empty folder"),
        "{}",
        again.stderr
    );
    let wanted = expected("llama_reward", "token_scores");
    for model in [
        format!("--model {base} --adapter {adapter}"),
        "--model merged".to_owned(),
    ] {
        let lines = workspace.lines(&format!("score --data data.jsonl {model}"));
        for (i, (line, row)) in lines.iter().zip(&rows).enumerate() {
            let wanted = wanted
                .i((i, row.len() - 1))
                .and_then(|t| t.to_scalar::<f32>());
            let (found, wanted) = (
                line["score"].as_f64().expect("a score") as f32,
                wanted.expect("a score"),
            );
            assert!(
                (found - wanted).abs() < TOLERANCE,
                "{model}: {found} for {wanted}"
            );
        }
    }
    workspace.write("prompts.jsonl", "{\"prompt_ids\": [5]}");
    let ended = workspace.run(&format!(
        "generate --prompts prompts.jsonl --out o.jsonl --model {base} --adapter {adapter}"
    ));
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("a language model"),
        "{}",
        ended.stderr
    );
}

#[test]
fn folders_that_do_not_belong_together_are_refused() {
    let workspace = Workspace::new();
    let (llama, gpt2) = (fixture("llama"), fixture("gpt2"));
    let (llama, gpt2, adapter) = (llama.display(), gpt2.display(), adapter("llama"));
    let adapter = adapter.display();
    for (arguments, says) in [
        (
            format!("--model {gpt2} --adapter {adapter} --out o"),
            "fits no module",
        ),
        (
            format!("--model {llama} --adapter {llama} --out o"),
            "adapter_config.json",
        ),
        (
            format!("--model {adapter} --adapter {adapter} --out o"),
            "set --model to the base model",
        ),
        (
            format!("--model {llama} --adapter {adapter} --out {llama}"),
            "name another folder",
        ),
    ] {
        let ended = workspace.run(&format!("export {arguments}"));
        assert_eq!(ended.code, Some(1), "{arguments}");
        assert!(ended.stderr.contains(says), "{arguments}: {}", ended.stderr);
    }
    let usage = format!("export --model {llama} --adapter {adapter} --out o --dtype int8");
    let ended = workspace.run(&usage);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("float32, bfloat16, float16"),
        "{}",
        ended.stderr
    );
    assert_eq!(workspace.names(), Vec::<String>::new());
}

/// A folder that holds both a model and an adapter may be meant as either, or as both.
#[test]
fn a_folder_of_a_model_and_an_adapter_is_refused_by_all_that_read_models() {
    let workspace = Workspace::new();
    workspace.copy_model("llama");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(
            adapter("llama").join(file),
            workspace.path("model").join(file),
        )
        .expect("a copy");
    }
    workspace.write("data.jsonl", "{\"ids\": [1, 2]}\n");
    workspace.write("prompts.jsonl", "{\"prompt_ids\": [5]}\n");
    let lora =
        "[run]\nname = \"t\"\n[sft]\nfrom = \"model\"\ndata = \"data.jsonl\"\nlora = { r = 2 }\n";
    workspace.write("lora.toml", lora);
    workspace.write("whole.toml", &lora.replace("lora = { r = 2 }", ""));
    for arguments in [
        "score --model model --data data.jsonl --out o.jsonl",
        "generate --model model --prompts prompts.jsonl --out o.jsonl",
        "sft whole.toml",
        "sft lora.toml",
        "plan lora.toml",
    ] {
        let ended = workspace.run(arguments);
        assert_eq!(ended.code, Some(1), "{arguments}");
        let said = "a whole model and an adapter";
        assert!(ended.stderr.contains(said), "{arguments}: {}", ended.stderr);
    }
    // Passed as an adapter, the folder is one, and the model in it is ignored.
    let base = fixture("llama");
    let ended = workspace.run(&format!(
        "score --model {} --adapter model --data data.jsonl --out o.jsonl",
        base.display()
    ));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}
