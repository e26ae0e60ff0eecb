//! A run is refused before its first stage, and by `plan`, for what a later stage would refuse.

use std::fs;

use serde_json::json;

use crate::refusal::refused;
use crate::support::{Workspace, pair, prompt, records};

/// `run` and `plan` end with the same message, and nothing is trained.
#[track_caller]
fn refused_at_once(workspace: &Workspace, flags: &str, says: &[&str]) {
    for command in ["run", "plan"] {
        refused(workspace, &format!("{command} config.toml {flags}"), says);
    }
    assert!(
        !workspace
            .stage("trial", "pretrain")
            .join("metrics.jsonl")
            .exists()
    );
}

#[test]
fn records_of_a_later_stage_are_read_before_the_first() {
    for (file, contents, says) in [
        (
            "sft.jsonl",
            records(0, 2, pair),
            ["stage sft", "[sft] data", "sft.jsonl:1"],
        ),
        (
            "pairs.jsonl",
            records(0, 2, prompt),
            ["stage dpo", "[dpo] data", "pairs.jsonl:1"],
        ),
        (
            "prompts.jsonl",
            records(0, 2, |_| json!({"question": "a"})),
            ["stage ppo", "ppo.prompts", "prompts.jsonl:1"],
        ),
    ] {
        let workspace = Workspace::new();
        workspace.write(file, &contents);
        refused_at_once(&workspace, "", &says);
    }
}

/// The tokenizer that pretraining trains has no chat template.
#[test]
fn a_chat_without_a_template_is_refused_before_the_first_stage() {
    let workspace = Workspace::new();
    let chat = |_| json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    workspace.write("sft.jsonl", &records(0, 2, chat));
    refused_at_once(
        &workspace,
        "",
        &["stage sft", "sft.jsonl:1", "chat template"],
    );
}

#[test]
fn more_frozen_layers_than_a_model_to_come_will_have_are_refused() {
    let says = ["stage reward", "reward.freeze_layers is 3", "2 layers"];
    refused_at_once(&Workspace::new(), "--set reward.freeze_layers=3", &says);
}

#[test]
fn a_rule_without_its_answer_and_a_reward_model_without_a_head_are_refused() {
    let workspace = Workspace::trained();
    let exact = "\n[[ppo.rewards]]\ntype = \"exact\"\nanswer_key = \"solution\"\n";
    let config = fs::read_to_string(workspace.path("config.toml")).expect("a file");
    let without = config.replace("reward_model = \"models/reward\"\n", "");
    workspace.write("config.toml", &(without + exact));
    refused_at_once(
        &workspace,
        "",
        &["stage ppo", "prompts.jsonl:1", "no field `solution`"],
    );
    workspace.write(
        "config.toml",
        &config.replace("models/reward", "models/sft"),
    );
    refused_at_once(
        &workspace,
        "",
        &["stage ppo", "models/sft: holds a language model"],
    );
}

#[test]
fn a_tokenizer_larger_than_the_embedding_is_refused() {
    let workspace = Workspace::trained();
    let file = workspace.path("models/pretrain/config.json");
    let text = fs::read_to_string(&file).expect("a file");
    let mut sizes: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    sizes["vocab_size"] = json!(270);
    fs::write(&file, sizes.to_string()).expect("a writable file");
    refused_at_once(&workspace, "", &["stage sft", "only 270 rows"]);
}

#[test]
fn a_prompt_without_room_is_refused_before_the_first_stage() {
    let workspace = Workspace::trained();
    let long = "the old king ".repeat(40);
    workspace.write("prompts.jsonl", &records(0, 2, |_| json!({"prompt": long})));
    let room = "the policy's context holds 64, of which the response may take 12; shorten it, or lower ppo.max_new_tokens";
    refused_at_once(
        &workspace,
        "",
        &["stage ppo", "ppo.prompts", "prompts.jsonl:", room],
    );
}

#[test]
fn more_memory_than_the_machine_has_is_refused_before_the_first_stage() {
    let flags = "--set pretrain.batch_size=1000000 --set pretrain.micro_batch_tokens=1000000000";
    let says = [
        "stage pretrain needs",
        "GiB of memory at once",
        "this machine has",
    ];
    refused_at_once(&Workspace::new(), flags, &says);
}
