//! A run is refused before its first stage, and by `plan`, for what a later stage would refuse.

use std::fs;

use serde_json::json;

use crate::refusal::refused;
use crate::support::{Workspace, pair, prompt, records};

/// Asserts that `run` and `plan` end with the same message, and that nothing is trained.
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

fn chat(number: usize) -> serde_json::Value {
    json!({"messages": [
        {"role": "user", "content": format!("{number}?")},
        {"role": "assistant", "content": "yes."}]})
}

/// The tokenizer that pretraining trains has a chat template only if the configuration names one.
#[test]
fn a_chat_without_a_template_is_refused_before_the_first_stage() {
    let workspace = Workspace::new();
    workspace.write("sft.jsonl", &records(0, 2, chat));
    let says = ["stage sft", "sft.jsonl:1", "set tokenizer.chat_template"];
    refused_at_once(&workspace, "", &says);
    let flags = "--set tokenizer.chat_template=chat.jinja";
    let says = ["tokenizer.chat_template", "no such file"];
    refused_at_once(&workspace, flags, &says);
    workspace.write("chat.jinja", "a\n{% if %}");
    let says = [
        "stage pretrain",
        "tokenizer.chat_template",
        "chat.jinja: line 2",
    ];
    refused_at_once(&workspace, flags, &says);
}

#[test]
fn a_trained_tokenizer_has_the_chat_template_of_the_configuration() {
    let workspace = Workspace::new();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    workspace.write("chat.jinja", template);
    workspace.write("sft.jsonl", &records(0, 40, chat));
    let config = fs::read_to_string(workspace.path("config.toml")).expect("a file");
    let specials = r#"["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]"#;
    let keys = format!("[tokenizer]\nchat_template = \"chat.jinja\"\nspecial_tokens = {specials}");
    workspace.write("config.toml", &config.replace("[tokenizer]", &keys));
    workspace.succeed("plan config.toml");
    workspace.succeed("pretrain config.toml");
    workspace.succeed("sft config.toml");
    let saved = workspace
        .model("trial", "sft")
        .join("tokenizer_config.json");
    let saved: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(saved).expect("a file")).expect("JSON");
    assert_eq!(saved["chat_template"], template);
    // A template is an input like data: a stage is not continued with another one.
    workspace.write(
        "chat.jinja",
        &template.replace("im_start|>assistant", "im_start|>model"),
    );
    let says = [
        "pretrain",
        "other contents of tokenizer.chat_template (chat.jinja)",
    ];
    refused(&workspace, "pretrain config.toml", &says);
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
    let room = "the policy's context holds 64, of which the response may take 12; shorten it, or \
                lower ppo.max_new_tokens";
    refused_at_once(
        &workspace,
        "",
        &["stage ppo", "ppo.prompts", "prompts.jsonl:", room],
    );
}

/// The judge reads the completions of evaluations, so its context may be the smallest.
#[test]
fn an_evaluation_prompt_without_room_at_the_judge_is_refused() {
    let workspace = Workspace::trained();
    fs::create_dir(workspace.path("models/judge")).expect("a folder");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let from = workspace.path("models/reward").join(file);
        fs::copy(from, workspace.path("models/judge").join(file)).expect("a copy");
    }
    let file = workspace.path("models/judge/config.json");
    let mut sizes: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&file).expect("a file")).expect("JSON");
    sizes["max_position_embeddings"] = json!(14);
    fs::write(&file, sizes.to_string()).expect("a writable file");
    let flags =
        "config.toml --set ppo.eval_prompts=prompts.jsonl --set ppo.judge_model=models/judge";
    let room = "the judge's context holds 14, of which the response may take 12";
    for command in ["plan", "run", "ppo"] {
        let says = ["stage ppo", "ppo.eval_prompts", room];
        refused(&workspace, &format!("{command} {flags}"), &says);
    }
}

/// A response as long as the context leaves no room for a prompt.
#[test]
fn no_room_for_any_prompt_is_refused_though_long_ones_are_cut() {
    let flags = "--set ppo.too_long=truncate --set ppo.max_new_tokens=64";
    let says = [
        "stage ppo",
        "ppo.max_new_tokens = 64 leaves no room for a prompt: the policy's context holds 64",
    ];
    refused_at_once(&Workspace::trained(), flags, &says);
    let flags = "--set ppo.micro_batch_tokens=8 --set ppo.too_long=skip";
    let says = [
        "ppo.max_new_tokens = 12",
        "ppo.micro_batch_tokens is 8; raise",
    ];
    refused_at_once(&Workspace::trained(), flags, &says);
}

#[test]
fn a_whole_reward_model_under_adapters_is_refused() {
    let flags = "--set ppo.share=adapter --set ppo.critic_from=reward_model";
    let says = ["stage ppo", "models/reward: holds a whole reward model"];
    refused_at_once(&Workspace::trained(), flags, &says);
}

/// Weights that do not fit into memory end `run` and `plan`. Activations of the longest sequences,
/// which may never occur, end only `plan`.
#[test]
fn more_memory_than_the_machine_has_is_refused_before_the_first_stage() {
    let says = ["GiB of memory at once", "this machine has"];
    let weights = "--set model.hidden_size=16384 --set model.num_hidden_layers=1000 \
                   --set model.intermediate_size=65536";
    refused_at_once(&Workspace::new(), weights, &says);
    let activations =
        "--set pretrain.batch_size=1000000 --set pretrain.micro_batch_tokens=1000000000";
    refused(
        &Workspace::new(),
        &format!("plan config.toml {activations}"),
        &says,
    );
}

#[test]
fn data_that_is_not_there_is_named_by_a_plan_too() {
    let workspace = Workspace::new();
    fs::remove_file(workspace.path("pairs.jsonl")).expect("a file");
    refused_at_once(&workspace, "", &["reward.data", "pairs.jsonl"]);
}

#[test]
fn scorers_of_other_tokens_and_settings_without_room_are_refused() {
    let workspace = Workspace::trained();
    let file = workspace.path("models/reward/config.json");
    let text = fs::read_to_string(&file).expect("a file");
    let mut sizes: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    sizes["vocab_size"] = json!(400);
    fs::write(&file, sizes.to_string()).expect("a writable file");
    refused_at_once(
        &workspace,
        "",
        &["stage ppo", "models/reward has a vocabulary of 400"],
    );
    fs::write(&file, text).expect("a writable file");
    let ptx = "--set ppo.ptx_coef=0.5 --set ppo.ptx_data=text.jsonl --set ppo.ptx_length=65";
    refused_at_once(&workspace, ptx, &["stage ppo", "ppo.ptx_length is 65"]);
}

/// What a stage accepts is not refused in advance.
#[test]
fn records_that_are_left_out_or_not_learned_are_no_reason_to_refuse() {
    let workspace = Workspace::new();
    let bad = |i: usize| match i {
        0 => json!({"question": "a"}),
        _ => json!({"prompt": "the old king", "completion": " sleeps"}),
    };
    workspace.write("sft.jsonl", &records(0, 40, bad));
    let skip = "--set sft.bad_records=skip";
    let ended = workspace.run(&format!("plan config.toml {skip}"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    workspace.write("sft.jsonl", &records(0, 40, |_| json!({"question": "a"})));
    refused_at_once(&workspace, skip, &["stage sft", "no record is left"]);
}

#[test]
fn a_reward_program_that_is_not_there_is_refused_before_the_first_stage() {
    let workspace = Workspace::trained();
    let config = fs::read_to_string(workspace.path("config.toml")).expect("a file");
    let without = config.replace("reward_model = \"models/reward\"\n", "");
    let program =
        "\n[[ppo.rewards]]\ntype = \"program\"\ncommand = [\"no-such-program\", \"rewards.py\"]\n";
    workspace.write("config.toml", &(without + program));
    refused_at_once(
        &workspace,
        "",
        &["stage ppo", "`no-such-program` is not there"],
    );
}

/// What a judge's folder lacks is told with the key that names it.
#[test]
fn a_judge_without_a_head_is_refused_by_its_key() {
    let judge = "--set ppo.eval_prompts=prompts.jsonl --set ppo.judge_model=models/sft";
    let says = "ppo.judge_model: models/sft: holds a language model";
    refused_at_once(&Workspace::trained(), judge, &["stage ppo", says]);
}

#[test]
fn a_model_that_is_not_there_is_named_by_its_key() {
    let nowhere = "--set sft.from=nowhere";
    refused_at_once(&Workspace::trained(), nowhere, &["sft.from", "nowhere"]);
}

const TRUNK: &str = "--set ppo.share=trunk --set ppo.trunk_layers=1";

/// A reward model that shares weights with the policy must be trained on these weights.
#[test]
fn a_reward_model_to_come_from_another_trunk_or_base_is_refused() {
    let workspace = Workspace::new();
    let from_base = "--set reward.from=runs/trial/pretrain/final";
    let or_from = "or set reward.from = \"runs/trial/sft/final\"";
    for (flags, says) in [
        (
            format!("{TRUNK} {from_base} --set reward.freeze_layers=1"),
            format!("set sft.freeze_layers = 1, {or_from}"),
        ),
        (
            TRUNK.to_owned(),
            "[reward] would train layers of the trunk".to_owned(),
        ),
        (
            format!("{TRUNK} --set reward.lora={{}}"),
            "set reward.lora.layers_to_transform = \"top:1\"".to_owned(),
        ),
        (
            format!("--set ppo.share=adapter {from_base} --set reward.lora={{}}"),
            format!("add [sft.lora], {or_from}"),
        ),
    ] {
        refused_at_once(&workspace, &flags, &["stage ppo", "reward `model`", &says]);
    }
    let top = format!("{TRUNK} --set reward.lora.layers_to_transform=top:1");
    let ended = workspace.run(&format!("plan config.toml {top}"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn an_existing_reward_model_from_another_trunk_or_base_is_refused() {
    let workspace = Workspace::trained();
    let says = ["stage ppo", "models/reward", "fingerprint"];
    refused_at_once(&workspace, TRUNK, &says);
    workspace.succeed(
        "reward config.toml --set run.name=elsewhere --set reward.from=models/pretrain \
         --set reward.lora={} --set reward.max_steps=1",
    );
    let reward = "--set ppo.reward_model=runs/elsewhere/reward/final";
    let says = ["stage ppo", "trained on a base with fingerprint"];
    let flags = format!("--set ppo.share=adapter {reward}");
    refused_at_once(&workspace, &flags, &says);
}

/// A stage that is run alone is refused before it trains a model that `[ppo]` cannot share.
#[test]
fn a_single_stage_is_refused_for_the_trunk_that_ppo_shares() {
    let workspace = Workspace::trained();
    let reward = "--set ppo.reward_model=runs/trial/reward/final";
    refused(
        &workspace,
        &format!("reward config.toml {TRUNK} {reward}"),
        &["stage ppo", "set reward.freeze_layers = 1"],
    );
    assert!(!workspace.model("trial", "reward").exists());
    let frozen = "--set reward.freeze_layers=1 --set reward.max_steps=1";
    workspace.succeed(&format!("reward config.toml {TRUNK} {reward} {frozen}"));
    refused(
        &workspace,
        &format!("reward config.toml {TRUNK} {reward} --fresh"),
        &["stage ppo", "set reward.freeze_layers = 1"],
    );
    assert!(workspace.model("trial", "reward").exists());
}
