//! Bad input: each kind ends with exit code 1 and a message that says where and what. Nothing
//! panics, and no output file is left behind.

use std::fs;

use crate::support::Workspace;

/// Runs a command that must fail, in a folder filled by `prepare`.
fn refused(prepare: impl Fn(&Workspace), arguments: &str, says: &[&str]) {
    let workspace = Workspace::new();
    workspace.copy_model("llama");
    prepare(&workspace);
    let before = workspace.names();
    let ended = workspace.run(arguments);
    ended.assert_refused(says);
    assert!(ended.stderr.starts_with("error: "), "{}", ended.stderr);
    assert_eq!(workspace.names(), before, "{arguments}: a file was left");
}

/// Writes a configuration with these contents.
fn refused_config(contents: &str, says: &[&str]) {
    refused(
        |w| w.write("config.toml", contents),
        "sft config.toml",
        says,
    );
}

const GENERATE: &str = "generate --model model --prompts prompts.jsonl --out out.jsonl";
const SCORE: &str = "score --model model --data data.jsonl --out out.jsonl";

/// Writes a prompt file with these contents.
fn refused_prompts(contents: &str, says: &[&str]) {
    refused(|w| w.write("prompts.jsonl", contents), GENERATE, says);
}

/// Writes a file of records to score with these contents.
fn refused_data(contents: &str, says: &[&str]) {
    refused(|w| w.write("data.jsonl", contents), SCORE, says);
}

/// Changes the model, beside valid data.
fn refused_model(change: impl Fn(&Workspace), says: &[&str]) {
    let prepare = |w: &Workspace| {
        w.write("data.jsonl", "{\"ids\": [5, 6]}");
        change(w);
    };
    refused(prepare, SCORE, says);
}

#[test]
fn unknown_keys_and_wrong_types_of_a_configuration() {
    let sft = "[model]\nfrom = \"model\"\n[sft]\ndata = \"data.jsonl\"\n";
    refused_config(
        &format!("{sft}learning_rat = 1e-4\n"),
        &["config.toml:5", "learning_rate"],
    );
    refused_config(
        &format!("{sft}max_steps = \"ten\"\n"),
        &["config.toml:5", "max_steps", "ten"],
    );
    refused_config("[sfft]\n", &["config.toml:1", "sfft", "sft"]);
    refused_config("[sft\n", &["config.toml:1", "TOML"]);
    refused_config("[run]\nseed = 1\n", &["config.toml", "[sft]"]);
    refused(|_| {}, "run nowhere.toml", &["nowhere.toml"]);
}

/// The command fails before it creates a run folder.
#[test]
fn a_stage_before_those_that_it_starts_from() {
    let stages = "[sft]\ndata = \"data.jsonl\"\n[reward]\ndata = \"data.jsonl\"\n[ppo]\n\
                  prompts = \"data.jsonl\"\n";
    let config = format!("[run]\nname = \"trial\"\n[model]\nfrom = \"model\"\n{stages}");
    let prepare = |w: &Workspace| {
        w.write("config.toml", &config);
        w.write("data.jsonl", "{}");
    };
    refused(
        prepare,
        "ppo config.toml",
        &[
            "ppo.from = \"runs/trial/sft/final\"",
            "run `collimate sft`",
            "ppo.reward_model = \"runs/trial/reward/final\"",
            "run `collimate reward`",
        ],
    );
}

#[test]
fn models_that_are_missing_or_damaged() {
    let weights = |w: &Workspace| w.path("model/model.safetensors");
    refused_model(
        |w| fs::remove_dir_all(w.path("model")).expect("a folder"),
        &["--model model: no such folder"],
    );
    refused_model(
        |w| fs::remove_file(weights(w)).expect("a file"),
        &["model: no model.safetensors"],
    );
    refused_model(
        |w| {
            let bytes = fs::read(weights(w)).expect("a file");
            fs::write(weights(w), &bytes[..bytes.len() / 2]).expect("a file");
        },
        &["model.safetensors", "cut short"],
    );
    refused_model(
        |w| w.write("model/config.json", "{"),
        &["model/config.json: not a JSON object"],
    );
    refused_model(
        |w| w.write("model/tokenizer.json", "{}"),
        &["model", "tokenizer.json cannot be read"],
    );
}

/// The last tensor of the file is the final norm, which every logit depends on.
#[test]
fn weights_that_are_not_numbers() {
    let spoil = |w: &Workspace| {
        let path = w.path("model/model.safetensors");
        let mut bytes = fs::read(&path).expect("a file");
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&path, bytes).expect("a file");
    };
    refused_model(
        spoil,
        &["records 0 to 0", "not finite", "weights are damaged"],
    );
}

#[test]
fn shapes_that_differ_from_the_configuration() {
    let resize = |w: &Workspace| {
        let path = w.path("model/config.json");
        let config = fs::read_to_string(&path).expect("a file");
        let changed = config.replace("\"hidden_size\": 32", "\"hidden_size\": 64");
        assert_ne!(changed, config);
        fs::write(&path, changed).expect("a file");
    };
    refused_model(resize, &["model.safetensors", "tensor `", "shape [", "64"]);
}

#[test]
fn models_of_the_other_kind() {
    let prepare = |w: &Workspace| {
        fs::remove_dir_all(w.path("model")).expect("a folder");
        w.copy_model("llama_reward");
        w.write("prompts.jsonl", "{\"prompt_ids\": [5]}");
    };
    refused(
        prepare,
        GENERATE,
        &["model", "a reward model", "a language model is needed"],
    );
}

#[test]
fn prompts_that_cannot_be_used() {
    let good = "{\"prompt_ids\": [5, 6]}\n";
    let after_good = |bad: &str, says: &[&str]| refused_prompts(&format!("{good}{bad}"), says);
    after_good(
        "{\"prompt_ids\": [5,}\n",
        &["prompts.jsonl:2:", "malformed JSON"],
    );
    after_good(
        "{\"prompt_ids\": 5}",
        &["prompts.jsonl:2", "`prompt_ids` is a number"],
    );
    after_good(
        "{\"prompt_ids\": [5, -1]}",
        &["prompts.jsonl:2", "`prompt_ids[1]`"],
    );
    after_good("{\"prompt_ids\": []}", &["prompts.jsonl:2", "no token"]);
    after_good(
        "{\"prompt_ids\": [5, 128]}",
        &["prompts.jsonl:2", "token id 128", "of 128"],
    );
    after_good(
        "{\"prompt\": \"a\"}",
        &["prompts.jsonl:2", "no tokenizer.json", "`prompt_ids`"],
    );
    let wrong_limit = "{\"prompt_ids\": [5], \"max_new_tokens\": 0}";
    after_good(
        wrong_limit,
        &["prompts.jsonl:2", "`max_new_tokens` is 0", "1 or larger"],
    );
    refused_prompts("\n", &["prompts.jsonl", "is empty"]);
    refused(|_| {}, GENERATE, &["prompts.jsonl", "check the path"]);
}

#[test]
fn prompts_longer_than_the_context() {
    let ids = |n: usize| serde_json::json!({"prompt_ids": vec![5; n]}).to_string();
    refused_prompts(
        &ids(129),
        &["prompts.jsonl:1", "129 tokens", "context holds 128"],
    );
    refused_prompts(
        &ids(65),
        &["prompts.jsonl:1", "65 tokens", "takes 64", "max_new_tokens"],
    );
}

#[test]
fn data_to_score_that_cannot_be_used() {
    let long = serde_json::json!({"ids": vec![5; 129]}).to_string();
    refused_data(&long, &["data.jsonl:1", "129 tokens", "context holds 128"]);
    refused_data(
        "{\"ids\": [5]}\n{\"ids\": [999]}",
        &["data.jsonl:2", "token id 999"],
    );
    refused_data(
        "{\"prompt\": \"a\", \"completion\": \"b\"}",
        &["data.jsonl:1", "tokenizer"],
    );
    refused_data("{\"ids\": [5]", &["data.jsonl:1:", "malformed JSON"]);
    refused_data("", &["data.jsonl", "is empty"]);
}

#[test]
fn flags_that_cannot_be_met() {
    let good = |w: &Workspace| w.write("prompts.jsonl", "{\"prompt_ids\": [5]}");
    let with = |flags: &str, says: &[&str]| refused(good, &format!("{GENERATE} {flags}"), says);
    with("--stop end", &["--stop \"end\"", "tokenizer"]);
    let elsewhere = "generate --model model --prompts prompts.jsonl --out no/such/out.jsonl";
    refused(good, elsewhere, &["no/such/out.jsonl", "existing folder"]);
    #[cfg(not(feature = "hub"))]
    refused(
        good,
        "generate --model owner/name --prompts prompts.jsonl --out out.jsonl",
        &["owner/name: no such folder", "--features hub"],
    );
    #[cfg(not(feature = "cuda"))]
    with("--device cuda:0", &["\"cuda:0\"", "--features cuda"]);
}
