//! Combinations of keys in `[ppo]`: those that are accepted, and the messages of the others.

use super::*;
use crate::config::tests::{refusal, resolve, resolve_text};

#[test]
fn a_critic_is_filled_in_only_where_there_is_one() {
    let ppo = |overrides: &[&str]| resolve(overrides).unwrap().ppo.unwrap();
    let gae = ppo(&[]);
    assert!(gae.has_critic() && gae.objective.whiten_advantages());
    assert_eq!(gae.critic.critic_from, Some(CriticFrom::RewardModel));
    let policy = ppo(&["ppo.critic_from=policy"]);
    assert_eq!(policy.critic.critic_from, Some(CriticFrom::Policy));
    let remax = ppo(&["ppo.advantage_estimator=remax"]);
    assert!(!remax.has_critic() && !remax.objective.whiten_advantages());
    assert_eq!(remax.critic, Critic::default());
}

#[test]
fn what_is_written_for_each_estimator_reads_back_the_same() {
    for estimator in [
        AdvantageEstimator::Gae,
        AdvantageEstimator::Grpo,
        AdvantageEstimator::DrGrpo,
        AdvantageEstimator::Rloo,
        AdvantageEstimator::ReinforcePlusPlus,
        AdvantageEstimator::Remax,
    ] {
        let set = format!("ppo.advantage_estimator={estimator}");
        let config = resolve(&[&set, "ppo.num_samples_per_prompt=4"]).unwrap();
        let found = &config.ppo.as_ref().unwrap().objective;
        assert_eq!(found.advantage_estimator, estimator);
        let written = config.to_toml().unwrap();
        assert_eq!(resolve_text(&written, &[]).unwrap(), config, "{written}");
    }
}

#[test]
fn keys_of_the_critic_are_refused_where_there_is_none() {
    for set in [
        "ppo.critic_from=policy",
        "ppo.critic_learning_rate=1e-3",
        "ppo.lam=0.9",
        "ppo.vf_coef=0.5",
        "ppo.cliprange_value=0.4",
    ] {
        resolve(&[set]).unwrap();
        let error = refusal(&[set, "ppo.advantage_estimator=remax"]);
        let words = "has no effect with advantage_estimator = \"remax\", which has no critic";
        assert!(error.contains(words), "--set {set} gave: {error}");
    }
}

#[test]
fn keys_of_ppo_that_do_nothing_together_are_refused() {
    let group = [
        "ppo.advantage_estimator=dr_grpo",
        "ppo.num_samples_per_prompt=4",
    ];
    let cases: [(&[&str], &str); 12] = [
        (
            &["ppo.advantage_estimator=rloo"],
            "must be 2 or more with advantage_estimator = \"rloo\"",
        ),
        (
            &[group[0], group[1], "ppo.gamma=0.9"],
            "ppo.gamma = 0.9 (--set ppo.gamma=0.9): has no effect with advantage_estimator = \
             \"dr_grpo\", which credits whole",
        ),
        (
            &[group[0], group[1], "ppo.whiten_rewards=true"],
            "which credits whole sequences",
        ),
        (
            &[
                "ppo.advantage_estimator=reinforce_plus_plus",
                "ppo.whiten_advantages=false",
            ],
            "whose baseline it is",
        ),
        (
            &["ppo.dynamic_sampling=2"],
            "as a single sample does; set num_samples_per_prompt to 2 or more",
        ),
        (
            &["ppo.overlong_penalty=0.5"],
            "has no effect without overlong_buffer",
        ),
        (&["ppo.overlong_buffer=65"], "is above max_new_tokens = 64"),
        (
            &["ppo.overlong_buffer=8", "ppo.overlong_penalty=0"],
            "must be larger than 0; it is subtracted",
        ),
        (
            &["ppo.kl_target=3"],
            "has no effect while kl_controller is \"fixed\"",
        ),
        (
            &["ppo.kl_horizon=100"],
            "has no effect while kl_controller is \"fixed\"",
        ),
        (
            &["ppo.kl_controller=adaptive", "ppo.kl_coef=0"],
            "would stay 0",
        ),
        (
            &["ppo.advantage_estimator=ppo"],
            "unknown word `ppo`, expected one of `gae`, `grpo`",
        ),
    ];
    for (set, words) in cases {
        let error = refusal(set);
        assert!(error.contains(words), "{set:?} gave: {error}");
        assert!(!error.contains("problems"), "{set:?} gave: {error}");
    }
    resolve(&[group[0], group[1], "ppo.dynamic_sampling=2"]).unwrap();
    resolve(&[group[0], group[1], "ppo.whiten_advantages=true"]).unwrap();
    resolve(&["ppo.kl_controller=adaptive", "ppo.kl_target=3"]).unwrap();
}

#[test]
fn the_words_of_other_trainers_lead_to_ours() {
    for (theirs, ours) in [
        (
            "ppo.adv_estimator=grpo",
            "did you mean `advantage_estimator`?",
        ),
        (
            "ppo.num_generations=4",
            "did you mean `num_samples_per_prompt`?",
        ),
        ("ppo.horizon=100", "did you mean `kl_horizon`?"),
    ] {
        let error = refusal(&[theirs]);
        assert!(error.contains(ours), "{error}");
    }
}
