//! Every advantage estimator in real runs: on policy like GAE, and without a critic nothing of a
//! critic is left anywhere.

use std::fs;

use crate::on_policy::{assert_start_on_policy, iterations, number};
use crate::support::{Line, Workspace, prompt, records};

const ESTIMATORS: [&str; 6] = [
    "gae",
    "grpo",
    "dr_grpo",
    "rloo",
    "reinforce_plus_plus",
    "remax",
];

fn flags(estimator: &str) -> String {
    format!("--set ppo.advantage_estimator={estimator} --set ppo.num_samples_per_prompt=4")
}

/// Whether any line has a metric with this prefix.
fn has(lines: &[Line], start: &str) -> bool {
    let mut names = lines.iter().flat_map(|line| line.keys());
    names.any(|name| name.starts_with(start))
}

/// The names of all files in a run's checkpoints.
fn checkpoint_files(workspace: &Workspace, run: &str) -> Vec<String> {
    let folder = workspace.stage(run, "ppo").join("checkpoints");
    let entries = |path| {
        fs::read_dir(path)
            .expect("a folder")
            .map(|e| e.expect("an entry"))
    };
    let files = entries(folder).flat_map(|checkpoint| entries(checkpoint.path()));
    files
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn every_estimator_starts_every_iteration_on_policy() {
    let workspace = Workspace::trained();
    let mut weights = Vec::new();
    for estimator in ESTIMATORS {
        let lines = iterations(&workspace, estimator, &flags(estimator));
        assert_eq!(lines.len(), 6);
        assert_start_on_policy(&lines, estimator);
        let critic = estimator == "gae";
        for start in ["value/", "loss/value"] {
            assert_eq!(has(&lines, start), critic, "{estimator}: {start}");
        }
        let files = checkpoint_files(&workspace, estimator);
        assert!(files.iter().any(|file| file == "actor.safetensors"));
        let of_critic = files.iter().any(|file| file.contains("critic"));
        assert_eq!(of_critic, critic, "{estimator}: {files:?}");
        for name in ["rollout/baseline_score", "time/baseline"] {
            assert_eq!(has(&lines, name), estimator == "remax", "{estimator}");
        }
        assert_eq!(number(&lines[0], "rollout/no_spread_fraction"), 0.0);
        let own = workspace.weights(estimator, "ppo");
        assert!(
            !weights.contains(&own),
            "{estimator} does what another one does"
        );
        weights.push(own);
    }
}

#[test]
fn every_estimator_earns_a_higher_score_on_one_batch_of_prompts() {
    let workspace = Workspace::trained();
    workspace.write("prompts.jsonl", &records(0, 4, prompt));
    for estimator in ESTIMATORS {
        let long = "--set ppo.max_steps=25 --set ppo.kl_coef=0.0";
        let lines = iterations(
            &workspace,
            estimator,
            &format!("{} {long}", flags(estimator)),
        );
        let score = |line: &Line| number(line, "objective/scores");
        let (before, after) = (score(&lines[0]), score(&lines[24]));
        // Happy endings score about +6, sad ones −6, and the initial policy has as many of either.
        assert!(
            after > before + 3.0,
            "{estimator}: from {before} to {after}"
        );
    }
}

#[test]
fn remax_takes_one_sample_a_prompt_too() {
    let flags = "--set ppo.advantage_estimator=remax";
    let lines = iterations(&Workspace::trained(), "trial", flags);
    assert_start_on_policy(&lines, flags);
    assert!(has(&lines, "rollout/baseline_score"));
    assert!(!has(&lines, "rollout/no_spread_fraction"));
}

/// Like the samples, greedy completions do not depend on the rest of the batch.
#[test]
fn remax_does_not_depend_on_how_rollouts_are_batched() {
    let workspace = Workspace::trained();
    let weights = |name: &str, batching: &str| {
        iterations(&workspace, name, &format!("{} {batching}", flags("remax")));
        workspace.weights(name, "ppo")
    };
    let plain = weights("plain", "");
    for (name, batching) in [
        ("one", "--set ppo.rollout_batch=1"),
        ("small", "--set ppo.cache_tokens=64 --set run.threads=1"),
    ] {
        assert!(weights(name, batching) == plain, "{batching}");
    }
}

#[test]
fn the_critic_starts_from_the_reward_model_or_from_the_policy() {
    let workspace = Workspace::trained();
    let run = |name: &str, flags: &str| {
        let lines = iterations(&workspace, name, flags);
        assert_start_on_policy(&lines, flags);
        let loss = lines.iter().map(|line| number(line, "loss/value"));
        (workspace.weights(name, "ppo"), loss.collect::<Vec<f64>>())
    };
    let unset = run("unset", "");
    let scorer = run("scorer", "--set ppo.critic_from=reward_model");
    let policy = run("policy", "--set ppo.critic_from=policy");
    assert!(unset == scorer, "the reward model is the default");
    assert!(policy.0 != scorer.0, "both critics started alike");
    assert!(policy.1.iter().all(|loss| *loss > 0.0), "{:?}", policy.1);
    assert_ne!(policy.1, scorer.1);
}

/// If unset, the loss aggregation is that of the estimator's source.
#[test]
fn an_unset_aggregation_is_the_estimators_own() {
    let workspace = Workspace::trained();
    let weights = |estimator: &str, aggregation: Option<&str>| {
        let name = format!("{estimator}-{}", aggregation.unwrap_or("unset"));
        let set = aggregation.map(|word| format!("--set ppo.loss_aggregation={word}"));
        let set = set.unwrap_or_default();
        let flags = format!("{} --set ppo.max_steps=2 {set}", flags(estimator));
        iterations(&workspace, &name, &flags);
        workspace.weights(&name, "ppo")
    };
    for (estimator, own, other) in [
        ("dr_grpo", "constant", "token"),
        ("rloo", "constant", "token"),
        ("remax", "constant", "token"),
        ("grpo", "token", "constant"),
        ("reinforce_plus_plus", "token", "constant"),
    ] {
        let unset = weights(estimator, None);
        assert!(unset == weights(estimator, Some(own)), "{estimator}");
        assert!(unset != weights(estimator, Some(other)), "{estimator}");
    }
}
