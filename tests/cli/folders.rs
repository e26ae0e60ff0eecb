//! Parts of a model folder that are not used are named on the terminal, once.

use std::fs;

use serde_json::{Value, json};

use crate::support::Workspace;

/// Sets keys in the model's `config.json`.
fn edit(workspace: &Workspace, keys: Value) {
    let text = fs::read(workspace.path("model/config.json")).expect("config.json");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    let map = config.as_object_mut().expect("an object");
    map.extend(keys.as_object().expect("an object").clone());
    workspace.write("model/config.json", &config.to_string());
}

/// The lines that `generate` writes to stderr.
fn said(workspace: &Workspace) -> String {
    workspace.write("prompts.jsonl", "{\"prompt_ids\": [9, 10]}\n");
    let flags = "generate --model model --prompts prompts.jsonl --out o.jsonl --max-new-tokens 1";
    let ended = workspace.run(flags);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.stderr
}

#[test]
fn a_head_that_the_configuration_has_no_use_for_is_named() {
    let workspace = Workspace::new();
    workspace.copy_model("llama_reward");
    edit(
        &workspace,
        json!({ "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true }),
    );
    let said = said(&workspace);
    let says = "model: score.weight is not used, because config.json describes a language model";
    assert_eq!(said.matches(says).count(), 1, "{said}");
}

#[test]
fn keys_that_are_not_read_are_named_once() {
    let workspace = Workspace::new();
    workspace.copy_model("llama");
    assert!(!said(&workspace).contains("not read"));
    edit(
        &workspace,
        json!({ "sliding_window": 8, "depth_gain": 2, "attention_dropout": 0.1 }),
    );
    let said = said(&workspace);
    let says = "config.json: these keys are ignored; they may belong to another kind of model: \
                sliding_window, depth_gain\n";
    assert_eq!(said.matches(says).count(), 1, "{said}");
}
