//! Pretraining text that PPO's update mixes in.

use crate::on_policy::number;
use crate::ppo_update::{column, run, workspace};
use crate::refusal::refused;
use crate::support::{read, records};

/// Flags that mix in pretraining text and change nothing else.
pub const PTX: &str = "--set ppo.ptx_coef=2.0 --set ppo.ptx_data=mix.jsonl --set ppo.ptx_length=24 \
                       --set ppo.ptx_batch_size=6";

#[test]
fn pretraining_text_is_learned_beside_the_reward() {
    let workspace = workspace();
    let without = run(&workspace, "without", "--set ppo.max_steps=8");
    assert!(!without[0].contains_key("loss/ptx"));
    let with = run(&workspace, "with", &format!("--set ppo.max_steps=8 {PTX}"));
    let loss = column(&with, "loss/ptx");
    assert!(loss[7] < loss[0] - 0.5, "{loss:?}");
}

/// The loss on mixed-in text, compared with pretraining's evaluation on the same rows.
#[test]
fn the_loss_on_pretraining_text_is_that_of_pretraining() {
    let workspace = workspace();
    let rows = "--set pretrain.data=mix.jsonl --set pretrain.eval_data=mix.jsonl \
                --set pretrain.context_length=24";
    let still =
        "--set pretrain.learning_rate=0.0 --set pretrain.batch_size=1 --set pretrain.max_steps=1";
    let config = String::from_utf8(read(&workspace.path("config.toml"))).expect("UTF-8");
    let model = config.find("[model]").expect("a table");
    let tokenizer = config.find("[tokenizer]").expect("a table");
    let from = format!(
        "{}[model]\nfrom = \"models/sft\"\n\n{}",
        &config[..model],
        &config[tokenizer..]
    );
    workspace.write("from.toml", &from);
    workspace.succeed(&format!(
        "pretrain from.toml --set run.name=text {rows} {still}"
    ));
    let text = workspace.metrics("text", "pretrain");
    let expected = number(&text[0], "eval/loss");
    let count = (1.0 / number(&text[1], "train/epoch")).round() as usize;
    assert!(count > 10, "{text:?}");
    let all = format!(
        "--set ppo.ptx_coef=0.1 --set ppo.ptx_data=mix.jsonl --set ppo.ptx_length=24 \
         --set ppo.ptx_batch_size={count}"
    );
    let still =
        "--set ppo.learning_rate=0.0 --set ppo.max_steps=2 --set ppo.micro_batch_tokens=100";
    for loss in column(
        &run(&workspace, "mixed", &format!("{all} {still}")),
        "loss/ptx",
    ) {
        let gap = (loss / expected - 1.0).abs();
        assert!(gap < 1e-5, "{loss} against {expected}");
    }
}

#[test]
fn other_pretraining_text_does_not_continue_a_run() {
    let workspace = workspace();
    let flags = format!("{PTX} --set ppo.lr_scheduler_type=constant");
    run(
        &workspace,
        "trial",
        &format!("{flags} --set ppo.max_steps=1"),
    );
    workspace.write(
        "mix.jsonl",
        &records(
            0,
            20,
            |i| serde_json::json!({"text": format!("other {i} words and more of them")}),
        ),
    );
    let ended = workspace.run(&format!("ppo config.toml {flags} --set ppo.max_steps=2"));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("ppo.ptx_data"), "{}", ended.stderr);
}

#[test]
fn pretraining_text_that_cannot_serve_is_refused() {
    let workspace = workspace();
    let with = |flags: &str| format!("ppo config.toml {PTX} {flags}");
    let missing = with("--set ppo.ptx_data=nowhere.txt");
    refused(
        &workspace,
        &missing,
        &["ppo.ptx_data", "nowhere.txt", "no such file"],
    );
    let long = with("--set ppo.ptx_length=65");
    refused(
        &workspace,
        &long,
        &["ppo.ptx_length is 65", "context holds 64"],
    );
    workspace.write("short.txt", "a few words");
    let short = with("--set ppo.ptx_data=short.txt");
    refused(&workspace, &short, &["ppo.ptx_data", "one row needs 24"]);
    let other = with("--set ppo.ptx_data=prompts.jsonl");
    refused(
        &workspace,
        &other,
        &["ppo.ptx_data", "prompts.jsonl:1", "text"],
    );
}
