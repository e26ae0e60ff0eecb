//! The epochs over a batch: minibatches of one optimizer step each, for actor and critic.

use anyhow::{Result, bail};
use rollout::random::{Key, Purpose};

use super::state::{Optimizers, State};
use super::targets::Targets;
use crate::config::{Ppo, Run};
use crate::data::packing::cut;
use crate::model::Decoder;
use crate::rlhf::stats::mean;
use crate::rlhf::{
    LossAggregation, PolicyLossConfig, PolicyStats, Rows, Totals, ValueLossConfig, ValueStats,
    policy_loss, value_loss,
};
use crate::roles::{Experience, Packed, Roles};
use crate::train::metrics::{Metrics, names};
use crate::train::optimizer::global_norm;
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
    /// Advantages, and what the critic aims at.
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

/// What the epochs read and change beside their batch.
pub struct Update<'a> {
    /// The stage's settings.
    pub config: &'a Ppo,
    /// The run's, for its seed and how many bad steps it bears.
    pub run: &'a Run,
    /// Whose weights move.
    pub roles: &'a Roles,
    /// What moves them.
    pub optimizers: &'a mut Optimizers,
    /// Counts skipped steps.
    pub state: &'a mut State,
    /// Learning rates.
    pub rates: Rates,
}

impl Update<'_> {
    /// Runs all epochs of an iteration and writes the means over their minibatches.
    ///
    /// # Errors
    /// If a computation fails, or too many steps in a row were not finite.
    pub fn epochs(&mut self, iteration: u64, batch: &Batch, metrics: &mut Metrics) -> Result<()> {
        let shuffle = Key::new(self.run.seed, Purpose::PpoShuffle);
        let (epochs, sequences) = (
            self.config.num_ppo_epochs as u64,
            batch.experience.sequences().len(),
        );
        let mut done = Vec::new();
        for epoch in 0..epochs {
            let order = shuffle.permutation(iteration * epochs + epoch, sequences);
            for indices in order.chunks(self.config.mini_batch_size()) {
                let mut minibatch = self.accumulate(batch, indices)?;
                self.step(&mut minibatch)?;
                done.push(minibatch);
            }
        }
        write(metrics, &done, self.rates);
        if self.roles.critic.is_some() {
            write_critic(metrics, &done);
        }
        Ok(())
    }

    /// Gradients of one minibatch, in micro-batches of bounded size.
    fn accumulate(&self, batch: &Batch, indices: &[usize]) -> Result<Minibatch> {
        let experience = batch.experience;
        let totals = Totals {
            tokens: indices.iter().map(|&i| experience.tokens_of(i).len()).sum(),
            sequences: indices.len(),
        };
        let roles = self.roles;
        for (_, model) in roles.trained() {
            model.params().zero_grad()?;
        }
        let mut minibatch = Minibatch::default();
        let size = |i: usize| experience.sequences()[i].ids.len();
        for micro in cut(
            indices.to_vec(),
            size,
            self.config.training.micro_batch_tokens,
        ) {
            let micro = Micro::new(batch, &micro, totals)?;
            self.policy(&micro, &mut minibatch)?;
            self.value(&micro, &mut minibatch)?;
        }
        for (role, model) in roles.trained() {
            if let [first, ..] = model.params().unreached().as_slice() {
                bail!("no gradient reached the {role}'s {first}");
            }
        }
        Ok(minibatch)
    }

    /// The actor's gradients of a micro-batch.
    fn policy(&self, micro: &Micro, minibatch: &mut Minibatch) -> Result<()> {
        let config = self.config;
        let temperature = config.generation.temperature as f32;
        let log_probs = micro
            .packed
            .log_probs(&self.roles.actor, temperature, gradient(&config.training))?
            .log_probs;
        let clip = PolicyLossConfig {
            cliprange_low: config.objective.cliprange,
            cliprange_high: config.objective.cliprange_high(),
            dual_clip: None,
        };
        let old = micro.pick(micro.batch.old_log_probs);
        let advantages = micro.pick(&micro.batch.targets.advantages);
        let policy = policy_loss(&log_probs, &old, &advantages, &micro.weights, &clip)?;
        policy.loss.backward()?;
        minibatch.policy_loss += policy.value;
        minibatch.policy.merge(&policy.stats);
        Ok(())
    }

    /// The critic's gradients of a micro-batch, if there is a critic.
    fn value(&self, micro: &Micro, minibatch: &mut Minibatch) -> Result<()> {
        let config = self.config;
        let (Some(critic), Some(aim)) = (&self.roles.critic, &micro.batch.targets.critic) else {
            return Ok(());
        };
        let values = micro.packed.values(critic, gradient(&config.training))?;
        let clip = ValueLossConfig {
            cliprange_value: Some(config.critic.cliprange_value),
        };
        let (old, returns) = (micro.pick(&aim.old_values), micro.pick(&aim.returns));
        let value = value_loss(&values, &old, &returns, &micro.weights, &clip)?;
        (&value.loss * config.critic.vf_coef)?.backward()?;
        minibatch.value_loss += value.value;
        minibatch.value.merge(&value.stats);
        Ok(())
    }

    /// One optimizer step of each, or of none when something is not finite.
    fn step(&mut self, minibatch: &mut Minibatch) -> Result<()> {
        let actor = self.roles.actor.params();
        let critic = self.roles.critic.as_ref().map(Decoder::params);
        let norms = [global_norm(actor)?, critic.map_or(Ok(0.0), global_norm)?];
        let losses = [minibatch.policy_loss, minibatch.value_loss];
        if !norms.iter().chain(&losses).all(|n| n.is_finite()) {
            return self.skip(minibatch);
        }
        self.state.bad_in_row = 0;
        [minibatch.actor_norm, minibatch.critic_norm] = norms;
        let (rates, optimizers) = (self.rates, &mut *self.optimizers);
        optimizers
            .actor
            .step_with(actor, minibatch.actor_norm, |_| rates.actor)?;
        if let (Some(critic), Some(optimizer)) = (critic, &mut optimizers.critic) {
            optimizer.step_with(critic, minibatch.critic_norm, |_| rates.critic)?;
        }
        Ok(())
    }

    fn skip(&mut self, minibatch: &Minibatch) -> Result<()> {
        self.state.skipped += 1;
        self.state.bad_in_row += 1;
        if self.state.bad_in_row < self.run.max_bad_steps.max(1) {
            return Ok(());
        }
        bail!(
            "{} optimizer steps in a row were not finite (policy loss {}, value loss {}); lower ppo.learning_rate, or set ppo.score_clip; \
             run again to continue from the last checkpoint",
            self.state.bad_in_row,
            minibatch.policy_loss,
            minibatch.value_loss
        )
    }
}

/// Sequences that one forward pass takes.
struct Micro<'a> {
    batch: &'a Batch<'a>,
    sequences: &'a [usize],
    packed: Packed,
    /// What each of their tokens counts in the minibatch's mean.
    weights: Vec<f64>,
}

impl<'a> Micro<'a> {
    fn new(batch: &'a Batch<'a>, sequences: &'a [usize], totals: Totals) -> Result<Self> {
        let experience = batch.experience;
        let mut offsets = vec![0];
        offsets.extend(sequences.iter().scan(0, |at, &i| {
            *at += experience.tokens_of(i).len();
            Some(*at)
        }));
        Ok(Self {
            batch,
            sequences,
            packed: Packed::new(sequences.iter().map(|&i| &experience.sequences()[i])),
            weights: LossAggregation::Token.weights(Rows::new(&offsets)?, totals)?,
        })
    }

    /// The entries of the sequences' tokens, in their order.
    fn pick<T: Copy>(&self, all: &[T]) -> Vec<T> {
        let tokens = |&i: &usize| all[self.batch.experience.tokens_of(i)].iter().copied();
        self.sequences.iter().flat_map(tokens).collect()
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
        .set(names::LOSS_POLICY, over(&|m| m.policy_loss));
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

/// Means of the critic's numbers over the iteration's minibatches.
fn write_critic(metrics: &mut Metrics, done: &[Minibatch]) {
    let over = |f: &dyn Fn(&Minibatch) -> f64| mean(&done.iter().map(f).collect::<Vec<f64>>());
    metrics
        .set(names::LOSS_VALUE, over(&|m| m.value_loss))
        .set(
            names::VALUE_CLIP_FRACTION,
            over(&|m| m.value.clip_fraction()),
        )
        .set(names::VALUE_GRAD_NORM, over(&|m| m.critic_norm));
}
