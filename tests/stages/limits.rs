//! Limits on an iteration of PPO: where its epochs end early, and where it is rolled back.

use std::path::PathBuf;

use crate::on_policy::number;
use crate::ppo_update::{column, run, workspace};
use crate::ptx::PTX;
use crate::refusal::refused;
use crate::support::{Workspace, read};

/// The files of the newest checkpoint, or of the oldest one that was kept.
fn checkpoints(workspace: &Workspace, name: &str) -> Vec<PathBuf> {
    let folder = workspace.stage(name, "ppo").join("checkpoints");
    let entries = std::fs::read_dir(folder).expect("checkpoints");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn a_target_ends_the_epochs_before_the_step_that_would_follow() {
    let workspace = workspace();
    let plain = run(&workspace, "plain", "");
    assert_eq!(column(&plain, "policy/updates"), [4.0; 6]);
    assert!(!plain[0].contains_key("policy/stopped_early"));
    // The first minibatch has KL 0 and steps; the second one sees that the policy has moved.
    let tight = run(&workspace, "tight", "--set ppo.target_kl=1e-9");
    assert_eq!(column(&tight, "policy/updates"), [1.0; 6]);
    assert_eq!(column(&tight, "policy/stopped_early"), [1.0; 6]);
    // The means are over these two minibatches, for no other one was computed.
    let kept = "--set ppo.target_kl=1e-9 --set ppo.rollback_kl_factor=1e9";
    for line in run(&workspace, "kept", kept) {
        let last = number(&line, "policy/last_approx_kl");
        assert_eq!(number(&line, "policy/approx_kl"), last / 2.0, "{line:?}");
    }
    let wide = run(
        &workspace,
        "wide",
        "--set ppo.target_kl=1e9 --set ppo.rollback_kl_factor=2.0",
    );
    assert_eq!(column(&wide, "policy/stopped_early"), [0.0; 6]);
    assert_eq!(column(&wide, "policy/rolled_back"), [0.0; 6]);
    assert!(workspace.weights("wide", "ppo") == workspace.weights("plain", "ppo"));
}

/// The limits compare the KL of the distributions that were sampled, which is 0 for an unchanged
/// policy.
#[test]
fn a_policy_that_stays_has_moved_by_nothing_at_any_temperature() {
    let flags = "--set ppo.temperature=0.7 --set ppo.top_k=24 --set ppo.learning_rate=0.0 \
                 --set ppo.target_kl=1e-9 --set ppo.rollback_kl_factor=1.0 --set ppo.max_steps=2";
    let lines = run(&workspace(), "still", flags);
    assert_eq!(column(&lines, "policy/last_approx_kl"), [0.0; 2]);
    assert_eq!(column(&lines, "policy/rolled_back"), [0.0; 2]);
}

#[test]
fn an_iteration_that_went_too_far_is_taken_back_to_the_last_bit() {
    for limits in [
        // The epochs end early, and the policy has already moved too far.
        "--set ppo.target_kl=1e-9 --set ppo.rollback_kl_factor=1.0",
        // With a single minibatch, only the pass after it can measure the KL.
        "--set ppo.target_kl=1e-9 --set ppo.rollback_kl_factor=1.0 --set ppo.num_mini_batches=1 \
         --set ppo.num_ppo_epochs=1",
    ] {
        let workspace = workspace();
        let flags = format!(
            "{PTX} {limits} --set ppo.max_steps=3 --set ppo.save_steps=1 --set ppo.keep_last=9"
        );
        let ended = workspace.succeed(&format!("ppo config.toml {flags}"));
        assert!(
            ended.stderr.contains("iteration 2 was rolled back"),
            "{}",
            ended.stderr
        );
        let mut lines = workspace.metrics("trial", "ppo");
        lines.retain(|line| number(line, "step") > 0.0);
        assert_eq!(column(&lines, "policy/rolled_back"), [1.0, 2.0, 3.0]);
        assert_eq!(column(&lines, "objective/kl"), [0.0; 3]);
        assert!(
            column(&lines, "policy/last_approx_kl")
                .iter()
                .all(|&kl| kl > 1e-9)
        );
        let start = read(&workspace.path("models/sft/model.safetensors"));
        assert!(
            workspace.weights("trial", "ppo") == start,
            "the policy moved"
        );
        let saved = checkpoints(&workspace, "trial");
        assert_eq!(saved.len(), 4, "{saved:?}");
        for file in ["actor", "actor-moments", "critic", "critic-moments"] {
            let bytes = |folder: &PathBuf| read(&folder.join(format!("{file}.safetensors")));
            let first = bytes(&saved[0]);
            assert!(
                saved.iter().all(|folder| bytes(folder) == first),
                "{file} differs"
            );
        }
        // The text cursor is rolled back, so the loss on the text stays the same until the policy
        // moves.
        let ptx = column(&lines, "loss/ptx");
        if limits.contains("num_mini_batches=1") {
            assert!(ptx.iter().all(|&loss| loss == ptx[0]), "{ptx:?}");
        }
    }
}

#[test]
fn steps_that_break_the_weights_are_taken_back_or_end_the_run() {
    let broken = "--set ppo.learning_rate=1e30 --set ppo.max_grad_norm=0.0 --set ppo.max_steps=3 \
                  --set run.max_bad_steps=9";
    let workspace = workspace();
    let limits = "--set ppo.target_kl=0.1 --set ppo.rollback_kl_factor=2.0";
    let lines = run(&workspace, "back", &format!("{PTX} {broken} {limits}"));
    assert_eq!(column(&lines, "policy/rolled_back"), [1.0, 2.0, 3.0]);
    let start = read(&workspace.path("models/sft/model.safetensors"));
    assert!(
        workspace.weights("back", "ppo") == start,
        "the policy moved"
    );
    let terms = format!(
        "{PTX} --set ppo.entropy_coef=0.01 --set ppo.kl_in=loss --set ppo.loss_aggregation=sequence"
    );
    let flags = format!("ppo config.toml {terms} {broken} --set run.max_bad_steps=3");
    refused(
        &workspace,
        &flags,
        &[
            "3 optimizer steps in a row",
            "entropy loss",
            "ptx loss",
            "ppo.learning_rate",
        ],
    );
}

/// The critic's first step breaks its weights, so that each later step is skipped: three in the
/// first iteration, four in every other one. The policy stays as it is, and can be sampled.
const BROKEN_CRITIC: &str = "--set ppo.critic_warmup=1 --set ppo.critic_learning_rate=1e30 \
                             --set ppo.max_grad_norm=0.0 --set ppo.lr_scheduler_type=constant";

#[test]
fn skipped_steps_are_counted_by_continued_runs_too() {
    let workspace = workspace();
    let command = |name: &str, most: usize, steps: usize| {
        format!(
            "ppo config.toml {BROKEN_CRITIC} --set run.name={name} --set run.max_bad_steps={most} \
             --set ppo.max_steps={steps}"
        )
    };
    for steps in [2, 3] {
        workspace.succeed(&command("goes-on", 99, steps));
    }
    let mut lines = workspace.metrics("goes-on", "ppo");
    lines.retain(|line| number(line, "step") > 0.0);
    assert_eq!(column(&lines, "train/skipped_steps"), [3.0, 7.0, 11.0]);

    workspace.succeed(&command("ends", 9, 2));
    let says = ["9 optimizer steps in a row", "value loss"];
    refused(&workspace, &command("ends", 9, 3), &says);
}

/// The first step of an iteration breaks the weights, the others are skipped, and all is taken
/// back: the next iteration begins with a step that is taken, and with it a new count.
#[test]
fn a_step_that_is_taken_forgives_those_skipped_before_it() {
    let flags = "--set ppo.learning_rate=1e15 --set ppo.max_grad_norm=0.0 --set ppo.max_steps=3 \
                 --set run.max_bad_steps=4 --set ppo.target_kl=1.0 \
                 --set ppo.rollback_kl_factor=1.0";
    let lines = run(&workspace(), "trial", flags);
    assert_eq!(column(&lines, "policy/rolled_back"), [1.0, 2.0, 3.0]);
    assert_eq!(column(&lines, "train/skipped_steps"), [3.0, 6.0, 9.0]);
}
