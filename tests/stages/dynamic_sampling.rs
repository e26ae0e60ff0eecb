//! Dynamic sampling in real runs: prompts whose samples all have the same score are replaced by the
//! next prompts, and nothing else changes.

use crate::on_policy::{assert_start_on_policy, iterations, number};
use crate::support::{Line, Workspace};

/// Two samples of few, likely tokens: many pairs are equal, and equal texts have equal scores.
const NARROW: &str = "--set ppo.advantage_estimator=rloo --set ppo.num_samples_per_prompt=2 \
                      --set ppo.top_k=2 \
                      --set ppo.temperature=0.7 --set ppo.max_new_tokens=3";

fn total(lines: &[Line], name: &str) -> f64 {
    lines.iter().map(|line| number(line, name)).sum()
}

#[test]
fn groups_without_spread_are_replaced() {
    let workspace = Workspace::trained();
    let plain = iterations(&workspace, "plain", NARROW);
    assert!(
        total(&plain, "rollout/no_spread_fraction") > 0.0,
        "{plain:?}"
    );
    let flags = format!("{NARROW} --set ppo.dynamic_sampling=2");
    let lines = iterations(&workspace, "dynamic", &flags);
    assert_start_on_policy(&lines, &flags);
    assert!(total(&lines, "rollout/groups_dropped") > 0.0, "{lines:?}");
    let no_spread = |lines: &[Line]| total(lines, "rollout/no_spread_fraction");
    assert!(no_spread(&lines) < no_spread(&plain), "{lines:?}");
    for line in &lines {
        let rounds = number(line, "rollout/rounds");
        assert!((1.0..=3.0).contains(&rounds), "{line:?}");
        // Either the batch is full of groups with different scores, or all rounds were used.
        let full = number(line, "rollout/no_spread_fraction") == 0.0;
        assert!(full || rounds == 3.0, "{line:?}");
    }
    for name in ["rollout/rounds", "rollout/groups_dropped"] {
        assert!(!plain[0].contains_key(name), "{name} without rounds");
    }
}

/// At a temperature close to 0 all samples are equal: every round is used, and the batch is filled
/// with the groups that were to be replaced.
#[test]
fn a_batch_without_any_spread_is_filled() {
    let flags = "--set ppo.num_samples_per_prompt=4 --set ppo.temperature=0.0001 \
                 --set ppo.dynamic_sampling=3 --set ppo.max_steps=2";
    let lines = iterations(&Workspace::trained(), "trial", flags);
    for line in &lines {
        assert_eq!(number(line, "rollout/no_spread_fraction"), 1.0);
        assert_eq!(number(line, "rollout/rounds"), 4.0);
        assert_eq!(number(line, "rollout/groups_dropped"), 12.0);
        assert_eq!(number(line, "policy/first_ratio_max_dev"), 0.0);
    }
}

#[test]
fn where_every_group_has_spread_nothing_changes() {
    let workspace = Workspace::trained();
    let grouped = "--set ppo.num_samples_per_prompt=4";
    let lines = iterations(&workspace, "plain", grouped);
    assert_eq!(total(&lines, "rollout/no_spread_fraction"), 0.0);
    let flags = format!("{grouped} --set ppo.dynamic_sampling=5");
    let lines = iterations(&workspace, "dynamic", &flags);
    assert!(lines.iter().all(|l| number(l, "rollout/rounds") == 1.0));
    assert!(workspace.weights("plain", "ppo") == workspace.weights("dynamic", "ppo"));
}

#[test]
fn which_groups_are_replaced_does_not_depend_on_how_rollouts_are_batched() {
    let workspace = Workspace::trained();
    let weights = |name: &str, batching: &str| {
        let flags = format!("{NARROW} --set ppo.dynamic_sampling=2 {batching}");
        let lines = iterations(&workspace, name, &flags);
        assert!(total(&lines, "rollout/groups_dropped") > 0.0, "{lines:?}");
        workspace.weights(name, "ppo")
    };
    let plain = weights("plain", "");
    for (name, batching) in [
        ("one", "--set ppo.rollout_batch=1 --set run.threads=1"),
        ("small", "--set ppo.cache_tokens=64"),
        ("passes", "--set ppo.rollout_batch=7 --set run.threads=2"),
    ] {
        assert!(weights(name, batching) == plain, "{batching}");
    }
}
