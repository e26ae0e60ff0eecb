//! The critic's part of a minibatch.

use anyhow::Result;

use super::{Micro, Update};
use crate::rlhf::{LossAggregation, ValueLossConfig, ValueStats, value_loss};
use crate::train::supervised::gradient;

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
    /// The critic's gradients of a minibatch.
    ///
    /// # Errors
    /// If the computation fails.
    pub(super) fn critic_gradients(&self, micros: &[Micro]) -> Result<CriticSums> {
        self.roles.critic.params().zero_grad()?;
        let mut sums = CriticSums::default();
        for micro in micros {
            self.critic_pass(micro, &mut sums)?;
        }
        Ok(sums)
    }

    fn critic_pass(&self, micro: &Micro, sums: &mut CriticSums) -> Result<()> {
        let config = self.config;
        let values = micro
            .packed
            .values(&self.roles.critic, gradient(&config.training))?;
        let clip = ValueLossConfig {
            cliprange_value: Some(config.cliprange_value),
        };
        let old = micro.pick(micro.batch().old_values);
        let returns = micro.pick(&micro.batch().targets.returns);
        let weights = micro.weights(LossAggregation::Token)?;
        let value = value_loss(&values, &old, &returns, &weights, &clip)?;
        (&value.loss * config.vf_coef)?.backward()?;
        sums.loss += value.value;
        sums.stats.merge(&value.stats);
        Ok(())
    }
}
