//! How far an iteration may move the policy: where its epochs end early, and where it is taken back.

use anyhow::Result;

use super::{Batch, Fate, Minibatch, Update};
use crate::config::Ppo;
use crate::rlhf::RatioStats;
use crate::roles;
use crate::train::rollback::Rollback;

/// How an iteration's update ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// All minibatches were seen.
    Complete,
    /// `target_kl` ended the epochs.
    StoppedEarly,
    /// The weights are those of the iteration's beginning again.
    RolledBack {
        /// How far they had moved.
        approx_kl: f64,
    },
}

/// The trained roles with their optimizers, and how much text was read, at the beginning of an iteration. What only observes is not
/// among it: the KL controller, the scores' normaliser and the count of skipped steps keep what they have seen.
pub struct Start {
    actor: Rollback,
    critic: Option<Rollback>,
    ptx_rows: u64,
}

impl Start {
    /// Copies everything.
    ///
    /// # Errors
    /// If the device fails.
    pub fn of(update: &Update) -> Result<Self> {
        let (roles, optimizers) = (update.roles, &*update.optimizers);
        let critic = roles.critic.as_ref().zip(optimizers.critic.as_ref());
        let critic = critic.map(|(critic, optimizer)| Rollback::of(critic.params(), optimizer));
        Ok(Self {
            actor: Rollback::of(roles.actor.params(), &optimizers.actor)?,
            critic: critic.transpose()?,
            ptx_rows: update.state.ptx_rows,
        })
    }

    /// Puts everything back, to the last bit.
    ///
    /// # Errors
    /// If the device fails.
    pub fn put_back(self, update: &mut Update) -> Result<()> {
        let (roles, optimizers) = (update.roles, &mut *update.optimizers);
        self.actor
            .put_back(roles.actor.params(), &mut optimizers.actor)?;
        if let (Some(critic), Some(start)) = (&roles.critic, self.critic)
            && let Some(optimizer) = &mut optimizers.critic
        {
            start.put_back(critic.params(), optimizer)?;
        }
        update.state.ptx_rows = self.ptx_rows;
        Ok(())
    }
}

/// Whether a minibatch with these ratios ends the epochs. One that is not a number does not: it is skipped and counted.
pub fn stops(config: &Ppo, ratio: &RatioStats) -> bool {
    let limit = config.update.target_kl;
    limit.is_some_and(|limit| ratio.approx_kl() > limit)
}

/// Whether a policy that has moved so far is to be taken back. One that gives no number is.
pub fn exceeds_or_nan(approx_kl: f64, limit: f64) -> bool {
    approx_kl.is_nan() || approx_kl > limit
}

impl Update<'_> {
    /// How far the policy stands from the one that sampled: of the minibatch that ended the epochs, else over the whole batch, for
    /// no minibatch has seen what the last step did.
    ///
    /// # Errors
    /// If the computation fails.
    pub(super) fn approx_kl_reached(&self, batch: &Batch, done: &[Minibatch]) -> Result<f64> {
        if let Some(last) = done.last().filter(|m| m.fate == Fate::Stopped)
            && let Some(policy) = &last.policy
        {
            return Ok(policy.stats.ratio.approx_kl());
        }
        let temperature = self.config.generation.temperature as f32;
        let limit = self.config.training.micro_batch_tokens;
        let sequences = batch.experience.sequences();
        let new = roles::log_probs(&self.roles.actor, sequences, temperature, limit)?;
        Ok(RatioStats::between(&new, batch.old_log_probs)?.approx_kl())
    }
}
