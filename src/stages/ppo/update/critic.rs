//! The critic's part of a minibatch.

use anyhow::{Context as _, Result};

use super::{Micro, Update};
use crate::model::Decoder;
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

impl Update<'_> {
    /// The critic's gradients of a minibatch; `None` without a critic.
    ///
    /// # Errors
    /// If the computation fails.
    pub(super) fn critic_gradients(&self, micros: &[Micro]) -> Result<Option<CriticSums>> {
        let Some(critic) = &self.roles.critic else {
            return Ok(None);
        };
        critic.params().zero_grad()?;
        let mut sums = CriticSums::default();
        for micro in micros {
            self.critic_pass(critic, micro, &mut sums)?;
        }
        Ok(Some(sums))
    }

    fn critic_pass(&self, critic: &Decoder, micro: &Micro, sums: &mut CriticSums) -> Result<()> {
        let config = self.config;
        let aim = micro.batch().targets.critic.as_ref();
        let aim = aim.context("a critic without targets")?;
        let values = micro.packed.values(critic, gradient(&config.training))?;
        let clip = ValueLossConfig {
            cliprange_value: Some(config.critic.cliprange_value),
        };
        let (old, returns) = (micro.pick(&aim.old_values), micro.pick(&aim.returns));
        let weights = micro.weights(LossAggregation::Token)?;
        let value = value_loss(&values, &old, &returns, &weights, &clip)?;
        (&value.loss * config.critic.vf_coef)?.backward()?;
        sums.loss += value.value;
        sums.stats.merge(&value.stats);
        Ok(())
    }
}
