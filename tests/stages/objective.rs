//! The KL weight and the length penalty between scores and rewards in real runs, compared with the
//! numbers that the run itself logs.

use crate::on_policy::{assert_start_on_policy, iterations, number};
use crate::support::Workspace;

/// β ← β · (1 + clip(KL / 0.5 − 1, ±0.2) · 16 / 200), from 0.1 on.
#[test]
fn the_adaptive_controller_follows_the_kl() {
    let flags = "--set ppo.kl_controller=adaptive --set ppo.kl_target=0.5 \
                 --set ppo.kl_horizon=200.0 --set ppo.kl_coef=0.1";
    let lines = iterations(&Workspace::trained(), "trial", flags);
    assert_start_on_policy(&lines, flags);
    let mut coef = 0.1;
    let mut coefs = Vec::new();
    for line in &lines {
        let found = number(line, "objective/kl_coef");
        assert!((found - coef).abs() < 1e-12, "{found} is not {coef}");
        coefs.push(coef);
        let error = (number(line, "objective/kl") / 0.5 - 1.0).clamp(-0.2, 0.2);
        coef *= 1.0 + error * 16.0 / 200.0;
    }
    let falls = coefs.windows(2).any(|w| w[1] < w[0]);
    let rises = coefs.windows(2).any(|w| w[1] > w[0]);
    assert!(falls && rises, "{coefs:?}");
}

/// With a buffer of all 12 tokens the penalty is 2 · length / 12, so its mean follows from the mean
/// length.
#[test]
fn the_overlong_penalty_is_taken_off_the_rewards() {
    let workspace = Workspace::trained();
    let first = |name: &str, flags: &str| {
        let lines = iterations(&workspace, name, flags);
        let of = |metric| number(&lines[0], metric);
        (
            of("objective/rlhf_reward"),
            of("objective/scores"),
            of("rollout/length_mean"),
        )
    };
    let plain = first("plain", "");
    let penalised = first(
        "penalised",
        "--set ppo.overlong_buffer=12 --set ppo.overlong_penalty=2.0",
    );
    assert_eq!(
        (plain.1, plain.2),
        (penalised.1, penalised.2),
        "raw scores stay"
    );
    let expected = plain.0 - 2.0 * plain.2 / 12.0;
    assert!(
        (penalised.0 - expected).abs() < 1e-9,
        "{penalised:?} {plain:?}"
    );
    assert!(workspace.weights("plain", "ppo") != workspace.weights("penalised", "ppo"));
}

#[test]
fn a_weight_of_the_kl_that_is_steered_changes_the_result() {
    let workspace = Workspace::trained();
    let weights = |name: &str, flags: &str| {
        iterations(&workspace, name, flags);
        workspace.weights(name, "ppo")
    };
    let adaptive = "--set ppo.kl_controller=adaptive --set ppo.kl_horizon=100.0";
    assert!(weights("fixed", "") != weights("adaptive", adaptive));
}
