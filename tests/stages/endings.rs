//! The tokens that end a completion and the position of a reward model's score, in the files that
//! stages write and in those that they read.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Workspace, example, records};

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n\
                        {% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

fn json_of(workspace: &Workspace, file: &str) -> Value {
    let text = fs::read(workspace.path(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    serde_json::from_slice(&text).expect("JSON")
}

/// Sets keys of a JSON file.
fn edit(workspace: &Workspace, file: &str, keys: Value) {
    let mut object = json_of(workspace, file);
    let map = object.as_object_mut().expect("an object");
    map.extend(keys.as_object().expect("an object").clone());
    fs::write(workspace.path(file), object.to_string()).expect("a writable file");
}

/// A base model whose tokenizer has EOS 0, padding 1 and `<|im_end|>` 2, which closes a turn in its
/// template; and chats.
fn chats() -> Workspace {
    let workspace = Workspace::new();
    workspace.succeed(
        "pretrain config.toml --set run.name=base --set pretrain.max_steps=2 \
         --set pretrain.eval_steps=0 \
         --set tokenizer.special_tokens=[\"<|endoftext|>\",\"<|pad|>\",\"<|im_end|>\"]",
    );
    let tokenizer = "runs/base/pretrain/final/tokenizer_config.json";
    edit(&workspace, tokenizer, json!({ "chat_template": TEMPLATE }));
    let config = fs::read_to_string(workspace.path("config.toml")).expect("a file");
    let from = "[sft]\nfrom = \"runs/base/pretrain/final\"";
    workspace.write("config.toml", &config.replace("[sft]", from));
    let turn = |role: &str, text: &Value| json!({ "role": role, "content": text });
    let chat = |i: usize| {
        let plain = example(i);
        json!({ "messages": [
            turn("user", &plain["prompt"]), turn("assistant", &plain["completion"])] })
    };
    workspace.write("sft.jsonl", &records(0, 40, chat));
    let prompt = |i: usize| json!({ "prompt": [turn("user", &example(i)["prompt"])] });
    workspace.write("prompts.jsonl", &records(0, 30, prompt));
    workspace.write("prompts_eval.jsonl", &records(60, 8, prompt));
    let pair = |i: usize| {
        let answer = |text: &str| json!([turn("assistant", &json!(text))]);
        json!({
            "prompt": [turn("user", &example(i)["prompt"])],
            "chosen": answer("yes"), "rejected": answer("no") })
    };
    workspace.write("pairs.jsonl", &records(0, 40, pair));
    workspace
}

/// The tokenizer's EOS and the token that closes a turn are in both files of every model that
/// generates.
#[test]
fn every_stage_writes_the_ends_that_it_taught() {
    let workspace = chats();
    let short = "--set sft.max_steps=1 --set dpo.max_steps=1 --set reward.max_steps=1 \
                 --set ppo.max_steps=1 \
                 --set ppo.eval_steps=1 --set ppo.max_new_tokens=8";
    for stage in ["sft", "dpo", "reward", "ppo"] {
        workspace.succeed(&format!("{stage} config.toml {short}"));
        let config = json_of(&workspace, &format!("runs/trial/{stage}/final/config.json"));
        assert_eq!(config["eos_token_id"], json!([0, 2]), "{stage}");
        if stage != "reward" {
            let file = format!("runs/trial/{stage}/final/generation_config.json");
            assert_eq!(
                json_of(&workspace, &file)["eos_token_id"],
                json!([0, 2]),
                "{stage}"
            );
        }
    }
    // An adapter's folder has only `generation_config.json`.
    workspace.succeed(&format!(
        "sft config.toml {short} --set sft.lora.r=2 --set run.name=adapter"
    ));
    let file = "runs/adapter/sft/final/generation_config.json";
    assert_eq!(json_of(&workspace, file)["eos_token_id"], json!([0, 2]));
}

/// PPO ends samples at both tokens, though the policy's folder names neither.
#[test]
fn samples_end_where_the_tokenizer_says() {
    let workspace = chats();
    workspace.succeed("sft config.toml --set sft.max_steps=1");
    for file in ["config.json", "generation_config.json"] {
        edit(
            &workspace,
            &format!("runs/trial/sft/final/{file}"),
            json!({ "eos_token_id": null }),
        );
    }
    let steps = "--set sft.max_steps=1 --set reward.max_steps=1";
    workspace.succeed(&format!("reward config.toml {steps}"));
    workspace.succeed(&format!(
        "ppo config.toml {steps} --set ppo.max_steps=1 --set ppo.eval_steps=1 \
         --set ppo.max_new_tokens=36 --set ppo.temperature=3",
    ));
    let metrics = workspace.metrics("trial", "ppo");
    let share = |name: &str| {
        metrics
            .iter()
            .filter_map(|line| line.get(name)?.as_f64())
            .sum::<f64>()
    };
    assert!(share("rollout/eos_fraction") > 0.0, "{metrics:?}");
    assert!(share("eval/eos_fraction") > 0.0, "{metrics:?}");
}

#[test]
fn the_closing_table_warns_where_nothing_ends_by_itself() {
    let workspace = Workspace::trained();
    let flags = "ppo config.toml --set ppo.max_steps=1 --set ppo.eval_steps=1";
    let output = workspace
        .command(&format!(
            "{flags} --set ppo.max_new_tokens=2 --set ppo.min_new_tokens=2"
        ))
        .output();
    let output = output.expect("the binary");
    let shown =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(
        shown.concat().contains("no completion ended by itself"),
        "{shown:?}"
    );
    let output = workspace
        .command(&format!("{flags} --set run.name=long"))
        .output()
        .expect("the binary");
    let shown =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(
        !shown.concat().contains("no completion ended by itself"),
        "{shown:?}"
    );
}

/// Configuration and tokenizer of a reward model agree on a padding token that ends no answer,
/// whatever the initial model has.
#[test]
fn a_reward_model_is_padded_with_a_token_that_ends_nothing() {
    for (id, token) in [
        (json!(0), json!("<|endoftext|>")),
        (Value::Null, json!("<|endoftext|>")),
        (json!(1), Value::Null),
    ] {
        let workspace = Workspace::trained();
        let start = format!("from {id} and {token}");
        let config = json!({ "pad_token_id": id });
        edit(&workspace, "models/sft/config.json", config);
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let pad = json!({ "pad_token": token });
            edit(&workspace, &format!("models/sft/{file}"), pad);
        }
        assert_padded(&workspace, &start);
    }
}

/// Trains a reward model and adapters of one, and asserts that `<|pad|>` pads both.
#[track_caller]
fn assert_padded(workspace: &Workspace, start: &str) {
    let ended = workspace.succeed("reward config.toml --set reward.max_steps=1");
    for says in [
        "\"<|pad|>\" (id 1) is the padding token",
        "[reward] scores at the last token (score_at = \"eos\")",
    ] {
        assert!(ended.stderr.contains(says), "{start}: {}", ended.stderr);
    }
    // Adapters have no `config.json`: the padding token is in the tokenizer's files.
    workspace.succeed(
        "reward config.toml --set reward.max_steps=1 --set reward.lora.r=2 \
         --set run.name=adapter",
    );
    for (file, key, expected) in [
        ("trial/reward/final/config.json", "pad_token_id", json!(1)),
        (
            "trial/reward/final/tokenizer_config.json",
            "pad_token",
            json!("<|pad|>"),
        ),
        (
            "trial/reward/final/special_tokens_map.json",
            "pad_token",
            json!("<|pad|>"),
        ),
        (
            "adapter/reward/final/tokenizer_config.json",
            "pad_token",
            json!("<|pad|>"),
        ),
    ] {
        let found = &json_of(workspace, &format!("runs/{file}"))[key];
        assert_eq!(found, &expected, "{start}: {file}");
    }
}

/// A tokenizer like GPT-2's, whose only special token is both EOS and padding: no other padding can
/// be chosen, the score is read before the last token, and both stages say so.
#[test]
fn an_end_token_that_alone_can_pad_is_read_before_and_named() {
    let workspace = Workspace::trained();
    let mut tokenizer = json_of(&workspace, "models/sft/tokenizer.json");
    let added = tokenizer["added_tokens"].as_array_mut();
    for token in added.expect("special tokens") {
        token["special"] = json!(token["id"] == 0);
    }
    workspace.write("models/sft/tokenizer.json", &tokenizer.to_string());
    let config = json!({ "pad_token_id": 0 });
    edit(&workspace, "models/sft/config.json", config);
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        let pad = json!({ "pad_token": "<|endoftext|>" });
        edit(&workspace, &format!("models/sft/{file}"), pad);
    }
    let config = fs::read_to_string(workspace.path("config.toml")).expect("a file");
    let keys = "from = \"models/sft\"\ndata = \"pairs.jsonl\"\nmax_length = 48\nbatch_size = 16";
    workspace.write("config.toml", &format!("{config}\n[judge]\n{keys}\n"));
    for stage in ["reward", "judge"] {
        let flags = format!(
            "--set run.name={stage} --set {stage}.max_steps=1 --set {stage}.learning_rate=1e-3"
        );
        let ended = workspace.succeed(&format!("{stage} config.toml {flags}"));
        let scored = format!("[{stage}] scores at the last token that is not 0, its padding");
        assert!(ended.stderr.contains(&scored), "{}", ended.stderr);
        assert!(
            !ended.stderr.contains("is the padding token"),
            "{}",
            ended.stderr
        );
    }
}

/// The last value of a metric.
fn last(workspace: &Workspace, run: &str, name: &str) -> f64 {
    let metrics = workspace.metrics(run, "ppo");
    let mut values = metrics.iter().filter_map(|line| line.get(name)?.as_f64());
    values
        .next_back()
        .unwrap_or_else(|| panic!("no {name} in {run}"))
}

/// Trained models, and in `before` the reward model with a padding token that is read before.
fn with_padded_reward() -> Workspace {
    let workspace = Workspace::trained();
    let before = workspace.path("before");
    fs::create_dir(&before).expect("a folder");
    for entry in fs::read_dir(workspace.path("models/reward")).expect("a model") {
        let path = entry.expect("an entry").path();
        let to = before.join(path.file_name().expect("a name"));
        fs::copy(&path, to).expect("a copy");
    }
    let config = json!({ "pad_token_id": 0 });
    edit(&workspace, "before/config.json", config);
    workspace
}

/// Runs an iteration of PPO; returns the evaluation's score, and standard error.
fn scored(workspace: &Workspace, name: &str, flags: &str) -> (f64, String) {
    let ended = workspace.succeed(&format!(
        "ppo config.toml --set ppo.max_steps=1 --set ppo.eval_steps=1 --set ppo.eval_samples=8 \
         --set run.name={name} {flags}"
    ));
    (last(workspace, name, "eval/score"), ended.stderr)
}

/// Reward model and judge are read where their folder says, or where the key says.
#[test]
fn ppo_reads_scores_where_the_folder_or_the_key_says() {
    let workspace = with_padded_reward();
    let run = |name: &str, flags: &str| scored(&workspace, name, flags);
    let (plain, said) = run("plain", "--set ppo.judge_model=before");
    for says in [
        "models/reward: scores at the last token (score_at",
        "judge before: scores at the last token that is not 0",
    ] {
        assert!(said.contains(says), "{said}");
    }
    let judged = last(&workspace, "plain", "eval/judge_score");
    assert_ne!(judged, plain, "the judge is read before the end");
    let eos = "--set ppo.score_at=eos";
    run("judge", &format!("--set ppo.judge_model=before {eos}"));
    assert_eq!(last(&workspace, "judge", "eval/judge_score"), plain);

    let before = "--set ppo.reward_model=before";
    assert_ne!(run("folder", before).0, plain);
    assert_eq!(run("key", &format!("{before} {eos}")).0, plain);
}

/// So are the models among the components of a reward.
#[test]
fn components_read_scores_where_the_folder_or_their_key_says() {
    let workspace = with_padded_reward();
    let config = fs::read_to_string(workspace.path("config.toml")).expect("a file");
    let config = config.replace("reward_model = \"models/reward\"\n", "");
    for (name, keys) in [
        ("model", "type = \"model\"\npath = \"before\""),
        (
            "ensemble",
            "type = \"ensemble\"\npaths = [\"before\", \"before\"]",
        ),
    ] {
        let text = format!("{config}\n[[ppo.rewards]]\n{keys}\n");
        workspace.write("config.toml", &text);
        let from = "--set ppo.critic_from=policy";
        let own = scored(&workspace, name, from).0;
        workspace.write("config.toml", &(text + "score_at = \"eos\"\n"));
        let eos = scored(&workspace, &format!("{name}-eos"), from).0;
        assert_ne!(own, eos, "{name}");
    }
}
