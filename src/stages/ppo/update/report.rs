//! Metrics of an iteration's update.

use super::critic::CriticSums;
use super::policy::PolicySums;
use super::{Minibatch, MinibatchOutcome, Rates};
use crate::config::Ppo;
use crate::rlhf::stats::mean;
use crate::stages::ppo::state::PpoState;
use crate::train::metrics::{Metrics, names};

/// Writes the means over the iteration's minibatches, and the ratio of the first one. A term that
/// no minibatch has is not written.
pub fn write(metrics: &mut Metrics, done: &[Minibatch], rates: Rates, config: &Ppo) {
    let policy: Vec<&PolicySums> = done.iter().filter_map(|m| m.policy.as_ref()).collect();
    let critic: Vec<&CriticSums> = done.iter().filter_map(|m| m.critic.as_ref()).collect();
    write_policy(metrics, &policy, rates);
    if config.update.dual_clip.is_some() {
        let fractions = policy.iter().map(|s| Some(s.stats.dual_clip_fraction()));
        set_mean(metrics, names::POLICY_DUAL_CLIP_FRACTION, fractions);
    }
    write_critic(metrics, &critic);
}

fn write_policy(metrics: &mut Metrics, sums: &[&PolicySums], rates: Rates) {
    let Some(first) = sums.first() else { return };
    let ratio = first.stats.ratio;
    let mut over = |name: &str, f: &dyn Fn(&PolicySums) -> Option<f64>| {
        set_mean(metrics, name, sums.iter().map(|s| f(s)));
    };
    over(names::POLICY_APPROX_KL, &|s| {
        Some(s.stats.ratio.approx_kl())
    });
    over(names::POLICY_CLIP_FRACTION, &|s| {
        Some(s.stats.clip_fraction())
    });
    over(names::POLICY_RATIO_MEAN, &|s| {
        Some(s.stats.ratio.ratio_mean())
    });
    over(names::POLICY_GRAD_NORM, &|s| s.norm);
    over(names::LOSS_POLICY, &|s| Some(s.loss));
    over(names::LOSS_KL, &|s| s.kl);
    over(names::LOSS_ENTROPY, &|s| s.entropy);
    over(names::LOSS_PTX, &|s| s.ptx);
    metrics
        .set(names::POLICY_LEARNING_RATE, rates.actor)
        .set(names::POLICY_FIRST_RATIO_MAX_DEV, ratio.ratio_max_dev)
        .set(names::POLICY_FIRST_APPROX_KL, ratio.approx_kl());
}

fn write_critic(metrics: &mut Metrics, sums: &[&CriticSums]) {
    let mut over = |name: &str, f: &dyn Fn(&CriticSums) -> Option<f64>| {
        set_mean(metrics, name, sums.iter().map(|s| f(s)));
    };
    over(names::LOSS_VALUE, &|s| Some(s.loss));
    over(names::VALUE_CLIP_FRACTION, &|s| {
        Some(s.stats.clip_fraction())
    });
    over(names::VALUE_GRAD_NORM, &|s| s.norm);
}

fn set_mean(metrics: &mut Metrics, name: &str, values: impl Iterator<Item = Option<f64>>) {
    let present: Vec<f64> = values.flatten().collect();
    if !present.is_empty() {
        metrics.set(name, mean(&present));
    }
}

/// Writes the approximate KL that the policy had reached after the last step.
pub fn write_reached(metrics: &mut Metrics, approx_kl: f64) {
    metrics.set(names::POLICY_LAST_APPROX_KL, approx_kl);
}

/// Writes the number of the actor's steps, whether the epochs ended early, and the iterations
/// rolled back.
pub fn write_counts(metrics: &mut Metrics, done: &[Minibatch], config: &Ppo, state: &PpoState) {
    let stepped = |m: &&Minibatch| m.outcome == MinibatchOutcome::Stepped && m.policy.is_some();
    metrics.set(
        names::POLICY_UPDATES,
        done.iter().filter(stepped).count() as f64,
    );
    if config.update.target_kl.is_some() {
        let stopped = done.iter().any(|m| m.outcome == MinibatchOutcome::Stopped);
        metrics.set(names::POLICY_STOPPED_EARLY, f64::from(u8::from(stopped)));
    }
    if config.update.rollback_kl_factor.is_some() {
        metrics.set(names::POLICY_ROLLED_BACK, state.rolled_back as f64);
    }
}
