//! Numbers that are far too large end in a message or in a completed run, quickly, and never in a
//! panic or with all memory taken.

use crate::limits::ends_soon;
use crate::support::Workspace;

const ONE_STEP: &str = "--set sft.max_steps=1 --set ppo.max_steps=1 --set pretrain.max_steps=1 \
                        --set reward.max_steps=1 \
                        --set dpo.max_steps=1";

/// Keys and values. A stage either takes one step with the value or refuses it by name.
const LARGE: &[(&str, &str)] = &[
    ("pretrain", "batch_size=1000000000000"),
    ("pretrain", "batch_size=4000000000000000000"),
    ("pretrain", "context_length=9223372036854775807"),
    ("pretrain", "eval_batches=9223372036854775807"),
    ("pretrain", "micro_batch_tokens=9223372036854775807"),
    ("pretrain", "micro_batch_tokens=1000000000"),
    ("pretrain", "eval_batches=1000000000"),
    ("sft", "max_length=9223372036854775807"),
    ("sft", "learning_rate=1e300"),
    ("sft", "save_steps=9223372036854775807"),
    ("sft", "log_steps=9223372036854775807"),
    ("sft", "keep_last=1000000000"),
    ("sft", "max_grad_norm=1e300"),
    ("sft", "freeze_layers=9223372036854775807"),
    ("sft", "freeze_layers=4096"),
    ("sft", "lora.r=9223372036854775807"),
    ("sft", "early_stopping_patience=9223372036854775807"),
    ("dpo", "beta=1e300"),
    ("dpo", "beta=1000000"),
    ("reward", "center_rewards_coefficient=1e300"),
    ("ppo", "batch_size=1000000000000"),
    ("ppo", "batch_size=4000000000000000000"),
    ("ppo", "num_ppo_epochs=9223372036854775807"),
    ("ppo", "num_mini_batches=9223372036854775807"),
    ("ppo", "num_samples_per_prompt=9223372036854775807"),
    ("ppo", "max_new_tokens=9223372036854775807"),
    ("ppo", "max_new_tokens=16777216"),
    ("ppo", "top_k=9223372036854775807"),
    ("ppo", "cache_bytes=9223372036854775807"),
    ("ppo", "cache_tokens=9223372036854775807"),
    ("ppo", "rollout_batch=1000000"),
    ("ppo", "eval_samples=1000000000"),
    ("ppo", "temperature=1e300"),
    ("ppo", "temperature=1e-300"),
    ("ppo", "temperature=1000000"),
    ("ppo", "kl_coef=1e300"),
    ("ppo", "score_clip=1e30"),
    ("ppo", "missing_eos_penalty=1e30"),
    ("ppo", "cliprange_value=1e30"),
];

#[test]
fn large_numbers_end_in_a_message_or_a_run() {
    let workspace = Workspace::trained();
    for (number, (stage, set)) in LARGE.iter().enumerate() {
        let key = set.split(['=', '.']).next().expect("a key");
        let set = format!("--set {stage}.{set}");
        let mut command = workspace.command(&format!(
            "{stage} config.toml --set run.name=n{number} {ONE_STEP} {set}"
        ));
        let ended = ends_soon(&mut command);
        let said = &ended.stderr;
        assert!(
            !said.contains("panicked") && !said.contains("overflow"),
            "{set}: {said}"
        );
        match ended.code {
            Some(0) => {}
            Some(1) => assert!(
                said.contains(key) || said.contains("not finite"),
                "{set}: {said}"
            ),
            code => panic!("{set}: {code:?}: {said}"),
        }
    }
}

#[test]
fn epochs_threads_and_sizes_of_a_model_are_bounded() {
    let workspace = Workspace::trained();
    for (command, words) in [
        (
            "sft config.toml --set sft.max_steps=0 --set sft.max_epochs=1e300",
            ["sft.max_epochs", "at most 1000000"],
        ),
        (
            "sft config.toml --set run.threads=100000",
            ["run.threads", "at most 1024"],
        ),
        (
            "pretrain config.toml --set model.hidden_size=16777216",
            ["model.hidden_size", "at most 262144"],
        ),
        (
            "pretrain config.toml --set model.hidden_size=262144 \
             --set model.intermediate_size=1048576",
            ["model.hidden_size", "GiB of memory at once"],
        ),
        (
            "pretrain config.toml --set tokenizer.vocab_size=1000000000000",
            ["tokenizer.vocab_size", "at most 1000000"],
        ),
    ] {
        let ended = ends_soon(&mut workspace.command(command));
        assert_eq!(ended.code, Some(1), "{command}: {}", ended.stderr);
        for word in words {
            assert!(ended.stderr.contains(word), "{command}: {}", ended.stderr);
        }
    }
    let many = "sft config.toml --set sft.max_steps=1 --set run.threads=1024";
    let ended = ends_soon(&mut workspace.command(many));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("run.threads = 1024"),
        "{}",
        ended.stderr
    );
}

/// Threads of the commands that `run.threads` does not apply to.
#[test]
fn threads_that_the_environment_asks_for_are_bounded() {
    let workspace = Workspace::trained();
    for arguments in [
        "generate --model models/sft --prompts prompts.jsonl --out o.jsonl --max-new-tokens 2",
        "plan config.toml",
    ] {
        let mut command = workspace.command(arguments);
        let ended = ends_soon(command.env("RAYON_NUM_THREADS", "100000"));
        assert_eq!(ended.code, Some(0), "{arguments}: {}", ended.stderr);
        let says = "RAYON_NUM_THREADS = 100000: ";
        assert!(ended.stderr.contains(says), "{arguments}: {}", ended.stderr);
    }
}

#[test]
fn flags_of_commands_are_bounded() {
    let workspace = Workspace::trained();
    let generate = "generate --model models/sft --prompts prompts.jsonl --out o.jsonl";
    for (flag, code) in [
        ("--n 1000000000000", 2),
        ("--n 99999999999999999999999999", 2),
        ("--max-new-tokens 18446744073709551615", 2),
        ("--max-new-tokens 16777216", 1),
        ("--batch 18446744073709551615", 2),
        ("--max-new-tokens 2 --batch 1000000", 0),
        ("--max-new-tokens 2 --top-k 18446744073709551615", 0),
    ] {
        let ended = ends_soon(&mut workspace.command(&format!("{generate} {flag}")));
        assert_eq!(ended.code, Some(code), "{flag}: {}", ended.stderr);
        assert!(
            !ended.stderr.contains("panicked"),
            "{flag}: {}",
            ended.stderr
        );
    }
    workspace.write(
        "one.jsonl",
        "{\"prompt\": \"a\", \"max_new_tokens\": 18446744073709551615}\n",
    );
    let ended = ends_soon(
        &mut workspace.command("generate --model models/sft --prompts one.jsonl --out o.jsonl"),
    );
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
}

/// Scores that are finite while their sum is not.
#[test]
fn a_score_without_end_is_named_with_its_prompt() {
    let workspace = Workspace::trained();
    let config = std::fs::read_to_string(workspace.path("config.toml")).expect("a configuration");
    let config = config.replace("reward_model = \"models/reward\"", "")
        + "\n[[ppo.rewards]]\ntype = \"length\"\nmax = 1000\npass = 1e30\nweight = 1e30\n";
    workspace.write("large.toml", &config);
    let ended = ends_soon(&mut workspace.command("ppo large.toml --set ppo.max_steps=1"));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for word in [
        "before the first iteration",
        "the weighted sum of rewards is inf for sample 0",
        "the prompt \"the cat saw a\"",
    ] {
        assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr);
    }
}
