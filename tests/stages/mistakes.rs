//! Mistakes inside a stage end with exit code 1 and a message that says where and what to do;
//! nothing panics.

use serde_json::json;

use crate::refusal::refused;
use crate::support::{Workspace, example, pair, prompt, read, records};

#[test]
fn a_malformed_line_is_named() {
    let workspace = Workspace::trained();
    let broken =
        |record: fn(usize) -> serde_json::Value| records(0, 2, record) + "{\"prompt\": \"a\n";
    workspace.write("sft.jsonl", &broken(example));
    workspace.write("pairs.jsonl", &broken(pair));
    workspace.write("prompts.jsonl", &broken(prompt));
    refused(
        &workspace,
        "sft config.toml",
        &["stage sft", "sft.jsonl:3", "JSON"],
    );
    refused(
        &workspace,
        "reward config.toml",
        &["stage reward", "pairs.jsonl:3", "JSON"],
    );
    refused(
        &workspace,
        "ppo config.toml",
        &["stage ppo", "prompts.jsonl:3", "JSON"],
    );
}

#[test]
fn a_missing_field_is_named() {
    let workspace = Workspace::trained();
    workspace.write("sft.jsonl", &records(0, 2, prompt));
    workspace.write("pairs.jsonl", &records(0, 2, prompt));
    workspace.write("prompts.jsonl", "{\"question\": \"a\"}\n");
    refused(
        &workspace,
        "sft config.toml",
        &["sft.jsonl:1", "completion"],
    );
    refused(
        &workspace,
        "reward config.toml",
        &["pairs.jsonl:1", "chosen"],
    );
    refused(
        &workspace,
        "ppo config.toml",
        &["prompts.jsonl:1", "prompt"],
    );
}

#[test]
fn empty_data_is_refused() {
    let workspace = Workspace::trained();
    for file in ["text.jsonl", "sft.jsonl", "pairs.jsonl", "prompts.jsonl"] {
        workspace.write(file, "");
    }
    refused(
        &workspace,
        "pretrain config.toml",
        &["stage pretrain", "text.jsonl"],
    );
    refused(&workspace, "sft config.toml", &["stage sft", "sft.jsonl"]);
    refused(
        &workspace,
        "reward config.toml",
        &["stage reward", "pairs.jsonl"],
    );
    refused(
        &workspace,
        "ppo config.toml",
        &["stage ppo", "prompts.jsonl"],
    );
}

#[test]
fn a_model_that_cannot_be_is_refused_before_text_is_read() {
    let workspace = Workspace::new();
    workspace.write("text.jsonl", "");
    refused(
        &workspace,
        "pretrain config.toml --set model.sliding_window=8",
        &[
            "stage pretrain",
            "[model]",
            "`sliding_window` is 8",
            "mistral",
        ],
    );
}

#[test]
fn more_frozen_layers_than_there_are_is_refused() {
    refused(
        &Workspace::trained(),
        "sft config.toml --set sft.freeze_layers=3",
        &["stage sft", "sft.freeze_layers is 3", "2 layers"],
    );
}

#[test]
fn a_prompt_that_leaves_no_room_is_refused() {
    let workspace = Workspace::trained();
    let long = "the old king ".repeat(40);
    workspace.write(
        "prompts.jsonl",
        &records(0, 1, |_| serde_json::json!({"prompt": long})),
    );
    let mend = "the policy's context holds 64, of which the response may take 12; shorten it, or \
                lower ppo.max_new_tokens";
    refused(&workspace, "ppo config.toml", &["prompts.jsonl:1", mend]);
}

#[test]
fn a_prompt_that_leaves_an_answer_no_room_names_keys_that_exist() {
    let workspace = Workspace::trained();
    let long = "the old king ".repeat(40);
    let record = json!({"prompt": long, "completion": "b", "chosen": "b", "rejected": "c"});
    for file in ["sft.jsonl", "pairs.jsonl"] {
        workspace.write(file, &format!("{record}\n"));
    }
    let raise = "reward.max_length is 48; shorten it, or raise reward.max_length or set \
                 reward.too_long to \"truncate\" or \"skip\"\n";
    let reward = "reward config.toml --set reward.too_long=error";
    refused(&workspace, reward, &["pairs.jsonl:1", raise]);
    let other = "raise sft.max_length or set sft.too_long to \"truncate\" or \"skip\"\n";
    let sft = "sft config.toml --set sft.too_long=error";
    refused(&workspace, sft, &["sft.jsonl:1", other]);
    let wide = format!("{reward} --set reward.max_length=64");
    let context = "the model's context holds 64; shorten it, or start from a model";
    refused(&workspace, &wide, &["pairs.jsonl:1", context]);
    let wider = format!("{sft} --set sft.max_length=80");
    let both = "sft.max_length is 80 and the model's context holds 64; shorten it";
    refused(&workspace, &wider, &["sft.jsonl:1", both]);
}

#[test]
fn held_out_records_are_blamed_on_their_key() {
    let workspace = Workspace::trained();
    workspace.write("held_out.jsonl", "{\"prompt\": \"a\"}\n");
    for (stage, field) in [("sft", "completion"), ("reward", "chosen")] {
        let held_out = format!(
            "{stage} config.toml --set {stage}.eval_fraction=0.0 \
             --set {stage}.eval_data=held_out.jsonl"
        );
        let key = format!("[{stage}] eval_data");
        refused(&workspace, &held_out, &[&key, "held_out.jsonl:1", field]);
    }
}

#[test]
fn roles_of_different_vocabularies_are_refused() {
    let workspace = Workspace::trained();
    let small = "--set run.name=small --set tokenizer.vocab_size=290";
    workspace.succeed(&format!(
        "pretrain config.toml {small} --set pretrain.max_steps=1"
    ));
    let from = "--set reward.from=runs/small/pretrain/final --set reward.max_steps=1";
    workspace.succeed(&format!(
        "reward config.toml {small} --set pretrain.max_steps=1 {from}"
    ));
    refused(
        &workspace,
        "ppo config.toml --set ppo.reward_model=runs/small/reward/final",
        &["runs/small/reward/final", "290", "320", "vocabulary"],
    );
}

#[test]
fn a_tokenizer_that_is_too_large_for_the_model_is_refused() {
    let workspace = Workspace::trained();
    let large = "--set run.name=large --set tokenizer.vocab_size=330";
    workspace.succeed(&format!(
        "pretrain config.toml {large} --set pretrain.max_steps=1"
    ));
    refused(
        &workspace,
        "sft config.toml --set tokenizer.from=runs/large/pretrain/final",
        &["330", "320", "models/pretrain", "tokenizer.from"],
    );
}

/// Two vocabularies of equal size in which two tokens have changed places.
#[test]
fn roles_of_different_tokens_are_refused() {
    let workspace = Workspace::trained();
    let name = "models/reward/tokenizer.json";
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&read(&workspace.path(name))).expect("JSON");
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().expect("tokens");
    for id in vocabulary.values_mut() {
        match id.as_u64() {
            Some(310) => *id = 311.into(),
            Some(311) => *id = 310.into(),
            _ => {}
        }
    }
    workspace.write(name, &tokenizer.to_string());
    refused(
        &workspace,
        "ppo config.toml",
        &["models/reward", "another tokenizer", "token 310"],
    );
    let judge = "--set ppo.reward_model=models/sound --set ppo.judge_model=models/reward";
    for file in ["config.json", "model.safetensors"] {
        let (from, to) = (
            format!("models/reward/{file}"),
            format!("models/sound/{file}"),
        );
        std::fs::create_dir_all(workspace.path("models/sound")).expect("a writable folder");
        std::fs::copy(workspace.path(&from), workspace.path(&to)).expect("a copy");
    }
    refused(
        &workspace,
        &format!("ppo config.toml {judge}"),
        &["models/reward", "another tokenizer"],
    );
}

#[test]
fn keys_that_cannot_go_together_are_refused_before_anything_runs() {
    let workspace = Workspace::trained();
    for (flags, says) in [
        (
            "--set ppo.advantage_estimator=grpo",
            "ppo.num_samples_per_prompt = 1 (the default): must be 2 or more with \
             advantage_estimator = \"grpo\", which compares the samples of a prompt",
        ),
        (
            "--set ppo.advantage_estimator=remax --set ppo.lam=0.9",
            "ppo.lam = 0.9 (--set ppo.lam=0.9): has no effect with \
             advantage_estimator = \"remax\", which has no critic",
        ),
        (
            "--set ppo.dynamic_sampling=3",
            "ppo.dynamic_sampling = 3 (--set ppo.dynamic_sampling=3): replaces prompts whose \
             samples all score alike",
        ),
        (
            "--set ppo.overlong_buffer=13",
            "ppo.overlong_buffer = 13 (--set ppo.overlong_buffer=13): is above max_new_tokens = 12",
        ),
        (
            "--set ppo.critic_from=judge",
            "unknown word `judge`, expected `reward_model` or `policy`",
        ),
    ] {
        refused(&workspace, &format!("ppo config.toml {flags}"), &[says]);
        assert!(!workspace.stage("trial", "ppo").exists(), "{flags}");
    }
}

#[test]
fn a_reference_whose_answers_all_score_alike_is_refused() {
    let workspace = Workspace::trained();
    workspace.write("prompts.jsonl", &records(0, 1, prompt));
    refused(
        &workspace,
        "ppo config.toml --set ppo.score_normalization=reference",
        &[
            "ppo.score_normalization = \"reference\": the scores of 1 samples of the reference \
             have no spread",
            "set it to \"running\" or \"none\"",
            "the standard deviation of the reference scores is 0",
        ],
    );
}

#[test]
fn another_estimator_does_not_continue_a_run() {
    let workspace = Workspace::trained();
    workspace.succeed("ppo config.toml --set ppo.max_steps=2");
    refused(
        &workspace,
        "ppo config.toml --set ppo.max_steps=4 --set ppo.advantage_estimator=remax",
        &["ppo.advantage_estimator: \"gae\" → \"remax\"", "--fresh"],
    );
}

#[test]
fn training_that_diverges_ends_with_a_message() {
    let workspace = Workspace::trained();
    for stage in ["pretrain", "sft", "reward", "ppo"] {
        let rate = format!("--set {stage}.learning_rate=1e30 --set {stage}.max_grad_norm=0.0");
        let run = format!("--set run.name={stage} --set run.max_bad_steps=3");
        refused(
            &workspace,
            &format!("{stage} config.toml {rate} {run}"),
            &["3 ", "steps in a row", &format!("{stage}.learning_rate")],
        );
    }
}

#[test]
fn a_step_that_is_not_finite_is_skipped_and_counted() {
    let workspace = Workspace::trained();
    let rate = "--set sft.learning_rate=1e30 --set sft.max_grad_norm=0.0 --set sft.max_steps=4";
    workspace.succeed(&format!(
        "sft config.toml {rate} --set run.max_bad_steps=100"
    ));
    let metrics = workspace.metrics("trial", "sft");
    let last = metrics.last().expect("a line");
    assert!(
        last["train/skipped_steps"].as_f64() >= Some(2.0),
        "{last:?}"
    );
    assert!(last["train/grad_norm"].is_null(), "{last:?}");
}

#[test]
fn two_processes_do_not_share_a_run() {
    let workspace = Workspace::trained();
    let mut first = workspace.command("sft config.toml --set sft.max_steps=100000");
    let mut first = first
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the binary");
    while !workspace
        .stage("trial", "sft")
        .join("metrics.jsonl")
        .exists()
    {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let second = workspace.run("sft config.toml --set sft.max_steps=100000");
    first.kill().expect("a running process");
    first.wait().expect("its end");
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(
        second.stderr.contains("another process is using"),
        "{}",
        second.stderr
    );
}
