//! Sampled log-probs are those of the training forward pass, bit for bit: the first minibatch of
//! every iteration has ratio 1, and a policy that does not move has a KL of 0. Tested in real runs,
//! for every way of sampling.

use crate::support::{Line, Workspace, lines};

/// All settings that cut or reshape the sampling distribution, at once.
const CUTS: &str = "--set ppo.temperature=0.7 --set ppo.top_k=24 --set ppo.top_p=0.95 \
                    --set ppo.min_p=0.01 --set ppo.min_new_tokens=3 \
                    --set ppo.num_samples_per_prompt=4";

pub fn number(line: &Line, name: &str) -> f64 {
    line.get(name)
        .and_then(|value| value.as_f64())
        .unwrap_or_else(|| panic!("no number {name} in {line:?}"))
}

/// The metrics of each iteration of a PPO run with this name and these flags.
pub fn iterations(workspace: &Workspace, name: &str, flags: &str) -> Vec<Line> {
    let flags = format!("--set run.name={name} --set ppo.rescore=true {flags}");
    workspace.succeed(&format!("ppo config.toml {flags}"));
    let mut lines = workspace.metrics(name, "ppo");
    lines.retain(|line| number(line, "step") > 0.0);
    lines
}

/// Runs PPO and checks that each iteration starts on policy.
fn assert_on_policy(flags: &str) -> Vec<Line> {
    let lines = iterations(&Workspace::trained(), "trial", flags);
    assert_eq!(lines.len(), 6, "{flags}");
    assert_start_on_policy(&lines, flags);
    lines
}

/// Checks that each iteration starts on policy, and that the policy does learn: one that never
/// moves would pass trivially.
#[track_caller]
pub fn assert_start_on_policy(lines: &[Line], flags: &str) {
    for line in lines {
        for exact in [
            "rollout/log_prob_max_dev",
            "policy/first_ratio_max_dev",
            "policy/first_approx_kl",
        ] {
            assert_eq!(number(line, exact), 0.0, "{flags}: {exact} in {line:?}");
        }
        assert!(number(line, "policy/approx_kl") > 0.0, "{flags}: {line:?}");
    }
    let kl: Vec<f64> = lines.iter().map(|l| number(l, "objective/kl")).collect();
    assert_eq!(
        kl[0], 0.0,
        "{flags}: the first rollouts are the reference's"
    );
    assert!(kl[1..].iter().all(|&kl| kl != 0.0), "{flags}: {kl:?}");
}

#[test]
fn plain_sampling_starts_every_iteration_on_policy() {
    assert_on_policy("");
}

#[test]
fn cut_distributions_start_every_iteration_on_policy() {
    let lines = assert_on_policy(CUTS);
    assert!(
        lines
            .iter()
            .all(|l| number(l, "rollout/length_mean") >= 3.0),
        "{lines:?}"
    );
}

#[test]
fn a_small_cache_and_small_passes_start_every_iteration_on_policy() {
    // Sequences wait for room in the cache, and a minibatch is accumulated over several passes that
    // are cut elsewhere than those of scoring.
    let squeezed =
        "--set ppo.rollout_batch=5 --set ppo.cache_tokens=96 --set ppo.micro_batch_tokens=64";
    assert_on_policy(squeezed);
    assert_on_policy(&format!("{CUTS} {squeezed}"));
}

#[test]
fn stop_strings_start_every_iteration_on_policy() {
    let flags = "--set ppo.stop=[\"o\",\"ho\"] --set ppo.temperature=0.7 \
                 --set ppo.num_samples_per_prompt=2";
    let with = assert_on_policy(flags);
    let without = assert_on_policy(&flags.replacen("[\"o\",\"ho\"]", "[]", 1));
    // Most completions contain an "o" before their end.
    assert!(
        number(&with[0], "rollout/length_mean") < number(&without[0], "rollout/length_mean"),
        "{with:?} {without:?}"
    );
}

#[test]
fn samples_leave_out_the_stop_string_that_ended_them() {
    let workspace = Workspace::trained();
    workspace.succeed("ppo config.toml --set ppo.stop=[\"o\",\"ho\"] --set ppo.max_steps=1");
    let samples = lines(&workspace.stage("trial", "ppo").join("samples.jsonl"));
    assert!(samples.iter().any(|sample| sample["finished"] == true));
    for sample in &samples {
        let completion = sample["completion"].as_str().expect("a text");
        assert!(!completion.contains('o'), "{sample:?}");
    }
}

/// Asserts that a policy with a learning rate of 0 equals the reference for five iterations, to the
/// last bit.
fn assert_no_kl(flags: &str) {
    let workspace = Workspace::trained();
    let still = "--set ppo.learning_rate=0.0 --set ppo.max_steps=5";
    let lines = iterations(&workspace, "trial", &format!("{still} {flags}"));
    assert_eq!(lines.len(), 5);
    for line in &lines {
        for zero in ["objective/kl", "policy/approx_kl", "policy/clip_fraction"] {
            assert_eq!(number(line, zero), 0.0, "{flags}: {zero} in {line:?}");
        }
        assert_eq!(number(line, "policy/ratio_mean"), 1.0, "{flags}: {line:?}");
        assert!(number(line, "policy/grad_norm") > 0.0, "{flags}: {line:?}");
    }
    let start = crate::support::read(&workspace.path("models/sft/model.safetensors"));
    assert!(
        workspace.weights("trial", "ppo") == start,
        "{flags}: the policy moved"
    );
}

#[test]
fn without_a_learning_rate_there_is_no_kl() {
    assert_no_kl("");
    assert_no_kl(&format!("{CUTS} --set ppo.critic_learning_rate=1e-3"));
}

/// The generator records the same log-probs that a second forward pass gives: both runs have the
/// same metrics, including the entropy.
#[test]
fn reading_the_samples_anew_changes_no_metric() {
    let workspace = Workspace::trained();
    for (i, flags) in ["", CUTS].into_iter().enumerate() {
        let again = iterations(&workspace, &format!("again-{i}"), flags);
        let name = format!("recorded-{i}");
        workspace.succeed(&format!("ppo config.toml --set run.name={name} {flags}"));
        let mut recorded = workspace.metrics(&name, "ppo");
        recorded.retain(|line| number(line, "step") > 0.0);
        assert_eq!(again.len(), recorded.len());
        for (again, recorded) in again.iter().zip(&recorded) {
            let entropy = number(recorded, "objective/entropy");
            assert!(entropy > 0.0, "{recorded:?}");
            let measured = |line: &Line| {
                let mut line = line.clone();
                line.retain(|name, _| {
                    !["time", "memory"].iter().any(|part| name.starts_with(part))
                        && !name.ends_with("per_second")
                        && name != "rollout/log_prob_max_dev"
                });
                line
            };
            assert_eq!(measured(again), measured(recorded), "{flags}");
        }
    }
}
