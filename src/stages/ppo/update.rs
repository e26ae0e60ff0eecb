//! The epochs over a batch: minibatches of one optimizer step each, for actor and critic.

use anyhow::{Result, bail};
use rollout::random::{Key, Purpose};

use super::state::{Optimizers, State};
use super::targets::Targets;
use crate::config::Ppo;
use crate::data::packing::cut;
use crate::model::{Decoder, Gradient};
use crate::rlhf::stats::mean;
use crate::rlhf::{
    LossAggregation, PolicyLossConfig, PolicyStats, Rows, Totals, ValueLossConfig, ValueStats,
    policy_loss, value_loss,
};
use crate::roles::{Experience, Packed, Roles};
use crate::stages::Context;
use crate::train::metrics::{Metrics, names};
use crate::train::optimizer::{StepOutcome, global_norm};
use crate::train::supervised::gradient;

/// Learning rates of an iteration.
#[derive(Clone, Copy)]
pub struct Rates {
    /// The actor's.
    pub actor: f64,
    /// The critic's.
    pub critic: f64,
}

/// A scored batch.
pub struct Batch<'a> {
    /// The sequences.
    pub experience: &'a Experience,
    /// Log-probs of the policy that sampled them.
    pub old_log_probs: &'a [f32],
    /// Values before the update.
    pub old_values: &'a [f32],
    /// Advantages and returns.
    pub targets: &'a Targets,
}

/// Sums over one minibatch.
#[derive(Default)]
struct Minibatch {
    policy_loss: f64,
    value_loss: f64,
    policy: PolicyStats,
    value: ValueStats,
    actor_norm: f64,
    critic_norm: f64,
}

/// Runs all epochs and writes the means over their minibatches.
#[allow(clippy::too_many_arguments)]
pub fn update(
    config: &Ppo,
    context: &Context,
    roles: &Roles,
    optimizers: &mut Optimizers,
    state: &mut State,
    iteration: u64,
    rates: Rates,
    batch: &Batch,
    metrics: &mut Metrics,
) -> Result<()> {
    let shuffle = Key::new(context.config.run.seed, Purpose::PpoShuffle);
    let mut done = Vec::new();
    for epoch in 0..config.num_ppo_epochs as u64 {
        let order = shuffle.permutation(
            iteration * config.num_ppo_epochs as u64 + epoch,
            batch.experience.sequences().len(),
        );
        for indices in order.chunks(config.mini_batch_size()) {
            let mut minibatch = accumulate(config, roles, batch, indices)?;
            step(context, roles, optimizers, state, rates, &mut minibatch)?;
            done.push(minibatch);
        }
    }
    write(metrics, &done, rates);
    Ok(())
}

/// Gradients of one minibatch, in micro-batches of bounded size.
fn accumulate(config: &Ppo, roles: &Roles, batch: &Batch, indices: &[usize]) -> Result<Minibatch> {
    let experience = batch.experience;
    let totals = Totals {
        tokens: indices.iter().map(|&i| experience.tokens_of(i).len()).sum(),
        sequences: indices.len(),
    };
    roles.actor.params().zero_grad()?;
    roles.critic.params().zero_grad()?;
    let mut minibatch = Minibatch::default();
    let size = |i: usize| experience.sequences()[i].ids.len();
    for micro in cut(indices.to_vec(), size, config.training.micro_batch_tokens) {
        accumulate_micro(config, roles, batch, &micro, totals, &mut minibatch)?;
    }
    for (role, model) in [("actor", &roles.actor), ("critic", &roles.critic)] {
        if let [first, ..] = model.params().unreached().as_slice() {
            bail!("no gradient reached the {role}'s {first}");
        }
    }
    Ok(minibatch)
}

fn accumulate_micro(
    config: &Ppo,
    roles: &Roles,
    batch: &Batch,
    micro: &[usize],
    totals: Totals,
    minibatch: &mut Minibatch,
) -> Result<()> {
    let experience = batch.experience;
    let mut offsets = vec![0];
    offsets.extend(micro.iter().scan(0, |at, &i| {
        *at += experience.tokens_of(i).len();
        Some(*at)
    }));
    let weights = LossAggregation::Token.weights(Rows::new(&offsets)?, totals)?;
    let packed = Packed::new(micro.iter().map(|&i| &experience.sequences()[i]));
    let record: Gradient = gradient(&config.training);

    let log_probs = packed
        .log_probs(&roles.actor, config.generation.temperature as f32, record)?
        .log_probs;
    let (old, advantages) = (
        pick(experience, micro, batch.old_log_probs),
        pick(experience, micro, &batch.targets.advantages),
    );
    let clip = PolicyLossConfig {
        cliprange_low: config.cliprange,
        cliprange_high: config.cliprange_high(),
        dual_clip: None,
    };
    let policy = policy_loss(&log_probs, &old, &advantages, &weights, &clip)?;
    policy.loss.backward()?;
    minibatch.policy_loss += policy.value;
    minibatch.policy.merge(&policy.stats);

    let values = packed.values(&roles.critic, record)?;
    let (old, returns) = (
        pick(experience, micro, batch.old_values),
        pick(experience, micro, &batch.targets.returns),
    );
    let clip = ValueLossConfig {
        cliprange_value: Some(config.cliprange_value),
    };
    let value = value_loss(&values, &old, &returns, &weights, &clip)?;
    (&value.loss * config.vf_coef)?.backward()?;
    minibatch.value_loss += value.value;
    minibatch.value.merge(&value.stats);
    Ok(())
}

/// The tokens of these sequences, in their order.
fn pick<T: Copy>(experience: &Experience, sequences: &[usize], all: &[T]) -> Vec<T> {
    sequences
        .iter()
        .flat_map(|&i| all[experience.tokens_of(i)].iter().copied())
        .collect()
}

/// One optimizer step of both, or of neither when something is not finite.
fn step(
    context: &Context,
    roles: &Roles,
    optimizers: &mut Optimizers,
    state: &mut State,
    rates: Rates,
    minibatch: &mut Minibatch,
) -> Result<()> {
    let finite =
        |model: &Decoder| Ok::<_, candle_core::Error>(global_norm(model.params())?.is_finite());
    let good = minibatch.policy_loss.is_finite()
        && minibatch.value_loss.is_finite()
        && finite(&roles.actor)?
        && finite(&roles.critic)?;
    if !good {
        state.skipped += 1;
        state.bad_in_row += 1;
        if state.bad_in_row >= context.config.run.max_bad_steps.max(1) {
            bail!(
                "{} optimizer steps in a row were not finite (policy loss {}, value loss {}); lower ppo.learning_rate, or set ppo.score_clip; \
                 run again to continue from the last checkpoint",
                state.bad_in_row,
                minibatch.policy_loss,
                minibatch.value_loss
            );
        }
        return Ok(());
    }
    state.bad_in_row = 0;
    minibatch.actor_norm = norm(
        optimizers
            .actor
            .step(roles.actor.params(), |_| rates.actor)?,
    );
    minibatch.critic_norm = norm(
        optimizers
            .critic
            .step(roles.critic.params(), |_| rates.critic)?,
    );
    Ok(())
}

fn norm(outcome: StepOutcome) -> f64 {
    match outcome {
        StepOutcome::Moved { grad_norm } => grad_norm,
        StepOutcome::NotFinite => f64::NAN,
    }
}

/// Means over the iteration's minibatches, and the first one alone.
fn write(metrics: &mut Metrics, done: &[Minibatch], rates: Rates) {
    let over = |f: &dyn Fn(&Minibatch) -> f64| mean(&done.iter().map(f).collect::<Vec<f64>>());
    metrics
        .set(
            names::POLICY_APPROX_KL,
            over(&|m| m.policy.ratio.approx_kl()),
        )
        .set(
            names::POLICY_CLIP_FRACTION,
            over(&|m| m.policy.clip_fraction()),
        )
        .set(
            names::POLICY_RATIO_MEAN,
            over(&|m| m.policy.ratio.ratio_mean()),
        )
        .set(names::POLICY_GRAD_NORM, over(&|m| m.actor_norm))
        .set(names::POLICY_LEARNING_RATE, rates.actor)
        .set(names::LOSS_POLICY, over(&|m| m.policy_loss))
        .set(names::LOSS_VALUE, over(&|m| m.value_loss))
        .set(
            names::VALUE_CLIP_FRACTION,
            over(&|m| m.value.clip_fraction()),
        )
        .set(names::VALUE_GRAD_NORM, over(&|m| m.critic_norm));
    if let Some(first) = done.first() {
        metrics
            .set(
                names::POLICY_FIRST_RATIO_MAX_DEV,
                first.policy.ratio.ratio_max_dev,
            )
            .set(
                names::POLICY_FIRST_APPROX_KL,
                first.policy.ratio.approx_kl(),
            );
    }
}
