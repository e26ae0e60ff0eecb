//! The critic's gradients of a minibatch.

use anyhow::{Context as _, Result};

use super::{ActorCriticUpdate, Microbatch};
use crate::model::Decoder;
use crate::ops::work::{self, DeviceWork};
use crate::rlhf::{LossAggregation, ValueLossConfig, ValueStats, value_loss};
use crate::train::configured::gradient;

/// Sums of the critic over one minibatch.
#[derive(Default)]
pub struct CriticSums {
    /// The value loss, before `vf_coef`.
    pub loss: f64,
    /// Sums over tokens.
    pub stats: ValueStats,
    /// Global norm of the gradient, once a step was taken.
    pub norm: Option<f64>,
}

impl ActorCriticUpdate<'_> {
    /// Adds the gradients of a minibatch to the critic's parameters; `None` without a critic.
    ///
    /// # Errors
    /// If the computation fails.
    pub(super) fn critic_gradients(
        &self,
        microbatches: &[Microbatch],
    ) -> Result<Option<CriticSums>> {
        let Some(critic) = &self.roles.critic else {
            return Ok(None);
        };
        critic.params().zero_grad()?;
        let mut sums = CriticSums::default();
        for microbatch in microbatches {
            self.critic_pass(critic, microbatch, &mut sums)?;
        }
        Ok(Some(sums))
    }

    fn critic_pass(
        &self,
        critic: &Decoder,
        microbatch: &Microbatch,
        sums: &mut CriticSums,
    ) -> Result<()> {
        let _work = work::begin(DeviceWork::Training("critic"));
        let (config, experience) = (self.config, microbatch.experience());
        let (old, returns) = experience
            .values()
            .zip(experience.returns())
            .context("a critic without values and returns")?;
        let values = microbatch
            .packed
            .values(critic, gradient(&config.training))?;
        let clip = ValueLossConfig {
            cliprange_value: Some(config.critic.cliprange_value),
        };
        let (old, returns) = (microbatch.select(old), microbatch.select(returns));
        let weights = microbatch.weights(LossAggregation::Token)?;
        let value = value_loss(&values, &old, &returns, &weights, &clip)?;
        (&value.loss * config.critic.vf_coef)?.backward()?;
        sums.loss += value.value;
        sums.stats.merge(&value.stats);
        Ok(())
    }
}
