//! Limits on how far an iteration may move the policy: ending its epochs early, and rolling it
//! back.

use anyhow::Result;

use super::{ActorCriticUpdate, Minibatch, MinibatchOutcome};
use crate::config::Ppo;
use crate::rlhf::RatioStats;
use crate::roles::{self, Experience};
use crate::train::rollback::Rollback;

/// How the update of an iteration ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UpdateOutcome {
    /// All epochs were run.
    Complete,
    /// `target_kl` ended the epochs early.
    StoppedEarly,
    /// The weights and moments of the iteration's start were restored.
    RolledBack {
        /// The approximate KL that the policy had reached.
        approx_kl: f64,
    },
}

/// A copy of the trained roles, their optimizers and the cursor of PPO-ptx at the start of an
/// iteration.
///
/// The KL controller, the scores' normaliser and the counter of skipped steps are not part of it:
/// they keep what they observed in an iteration that is rolled back.
pub struct IterationStart {
    actor: Rollback,
    critic: Option<Rollback>,
    ptx_rows: u64,
}

impl IterationStart {
    /// Copies weights, moments and the cursor.
    ///
    /// # Errors
    /// If the device fails.
    pub fn of(update: &ActorCriticUpdate) -> Result<Self> {
        let (roles, optimizers) = (update.roles, &*update.optimizers);
        let critic = roles.critic.as_ref().zip(optimizers.critic.as_ref());
        let critic = critic.map(|(critic, optimizer)| Rollback::of(critic.params(), optimizer));
        Ok(Self {
            actor: Rollback::of(roles.actor.params(), &optimizers.actor)?,
            critic: critic.transpose()?,
            ptx_rows: update.state.ptx_rows,
        })
    }

    /// Restores weights, moments and the cursor, bit for bit.
    ///
    /// # Errors
    /// If the device fails.
    pub fn put_back(self, update: &mut ActorCriticUpdate) -> Result<()> {
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

/// Whether a minibatch with these ratios ends the epochs. A KL that is NaN does not: its minibatch
/// is skipped and counted.
pub fn stops(config: &Ppo, ratio: &RatioStats) -> bool {
    let limit = config.update.target_kl;
    limit.is_some_and(|limit| ratio.approx_kl() > limit)
}

/// Whether a policy that reached this approximate KL is rolled back; one whose KL is NaN is.
pub fn exceeds_or_nan(approx_kl: f64, limit: f64) -> bool {
    approx_kl.is_nan() || approx_kl > limit
}

impl ActorCriticUpdate<'_> {
    /// The approximate KL from the policy that sampled to the policy after the update: that of the
    /// minibatch that ended the epochs, else measured over the whole batch, since no minibatch was
    /// computed after the last step.
    ///
    /// # Errors
    /// If the computation fails.
    pub(super) fn approx_kl_reached(
        &self,
        experience: &Experience,
        done: &[Minibatch],
    ) -> Result<f64> {
        if let Some(last) = done
            .last()
            .filter(|m| m.outcome == MinibatchOutcome::Stopped)
            && let Some(policy) = &last.policy
        {
            return Ok(policy.stats.ratio.approx_kl());
        }
        let temperature = self.config.generation.temperature as f32;
        let limit = self.config.training.micro_batch_tokens;
        let sequences = experience.sequences();
        let new = roles::log_probs(&self.roles.actor, sequences, temperature, limit)?;
        Ok(RatioStats::between(&new, &experience.policy()?.log_probs)?.approx_kl())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One log-ratio of 1: an approximate KL of ½.
    #[test]
    fn epochs_end_above_the_limit_and_not_at_it() {
        let ratio = RatioStats::between(&[-1.0], &[-2.0]).unwrap();
        let stops_at = |target_kl| {
            let mut config = Ppo::default();
            config.update.target_kl = target_kl;
            stops(&config, &ratio)
        };
        let limits = [None, Some(0.51), Some(0.5), Some(0.49)];
        assert_eq!(limits.map(stops_at), [false, false, false, true]);
    }

    #[test]
    fn an_update_is_taken_back_above_the_limit_or_without_a_number() {
        let found = [0.49, 0.5, 0.51, f64::NAN].map(|kl| exceeds_or_nan(kl, 0.5));
        assert_eq!(found, [false, false, true, true]);
    }
}
