//! Settings that must not change the weights change no bit of them: the number of threads, the
//! rollout batch and cache, recomputation, evaluations. Settings that must change them do.

use crate::support::Workspace;

/// The weights that `stage` ends in, with these flags.
fn weights(workspace: &Workspace, stage: &str, name: &str, flags: &str) -> Vec<u8> {
    workspace.succeed(&format!(
        "{stage} config.toml --set run.name={name} {flags}"
    ));
    workspace.weights(name, stage)
}

/// Runs `stage` with `flags` plus each of `harmless` and compares the weights with those of the
/// plain run; then with another seed, which must change them.
fn assert_invariant(stage: &str, flags: &str, harmless: &[&str]) {
    let workspace = Workspace::trained();
    let plain = weights(&workspace, stage, "plain", flags);
    for (i, key) in harmless.iter().enumerate() {
        let changed = weights(
            &workspace,
            stage,
            &format!("run-{i}"),
            &format!("{flags} --set {key}"),
        );
        assert!(
            changed == plain,
            "{stage} {flags}: {key} changed the weights"
        );
    }
    let seeded = weights(
        &workspace,
        stage,
        "seeded",
        &format!("{flags} --set run.seed=4"),
    );
    assert!(seeded != plain, "{stage} {flags}: the seed changed nothing");
}

#[test]
fn pretraining_does_not_depend_on_threads_or_recomputation() {
    assert_invariant(
        "pretrain",
        "",
        &[
            "run.threads=1",
            "run.threads=2",
            "pretrain.recompute=block",
            "pretrain.eval_steps=0",
        ],
    );
}

/// Products, sums and logits are large enough here to be split among threads.
#[test]
fn a_wider_model_does_not_depend_on_threads_or_recomputation() {
    let wide = "--set model.hidden_size=96 --set model.intermediate_size=256 \
                --set pretrain.batch_size=24 --set pretrain.max_steps=4";
    let harmless = [
        "run.threads=1",
        "run.threads=2",
        "run.threads=3",
        "pretrain.recompute=block",
    ];
    assert_invariant("pretrain", wide, &harmless);
}

#[test]
fn fine_tuning_does_not_depend_on_threads_or_recomputation() {
    assert_invariant(
        "sft",
        "",
        &["run.threads=1", "run.threads=2", "sft.recompute=block"],
    );
}

#[test]
fn reward_models_do_not_depend_on_threads_or_recomputation() {
    assert_invariant(
        "reward",
        "",
        &["run.threads=1", "run.threads=2", "reward.recompute=block"],
    );
}

#[test]
fn preference_tuning_does_not_depend_on_threads_or_recomputation() {
    assert_invariant(
        "dpo",
        "",
        &["run.threads=1", "run.threads=2", "dpo.recompute=block"],
    );
    assert_invariant(
        "dpo",
        "--set dpo.lora.r=4",
        &["run.threads=1", "dpo.recompute=block"],
    );
}

#[test]
fn ppo_does_not_depend_on_threads_or_recomputation() {
    assert_invariant(
        "ppo",
        "",
        &[
            "run.threads=1",
            "run.threads=2",
            "ppo.recompute=block",
            "ppo.eval_steps=1",
        ],
    );
}

#[test]
fn ppo_does_not_depend_on_how_rollouts_are_batched() {
    assert_invariant(
        "ppo",
        "",
        &[
            "ppo.rollout_batch=1",
            "ppo.rollout_batch=7",
            "ppo.cache_tokens=64",
            "ppo.cache_bytes=65536",
            "ppo.rescore=true",
        ],
    );
}
