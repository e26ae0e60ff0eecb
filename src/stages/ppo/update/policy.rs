//! The actor's part of a minibatch: the clipped loss, the KL to the reference where the loss carries it, and the entropy bonus.

use anyhow::{Context as _, Result};
use candle_core::Tensor;

use super::{Micro, Update};
use crate::config::Ppo;
use crate::ops::head::{BothLogProbs, TokenLogProbs};
use crate::rlhf::differentiable::weighted_sum;
use crate::rlhf::kl::kl_loss;
use crate::rlhf::{PolicyLossConfig, PolicyStats, policy_loss};
use crate::train::configured::gradient;

/// Sums of the actor over one minibatch. Terms that the loss does not have are `None`.
#[derive(Default)]
pub struct PolicySums {
    /// The clipped loss.
    pub loss: f64,
    /// The KL to the reference, before its coefficient.
    pub kl: Option<f64>,
    /// The entropy, before its coefficient.
    pub entropy: Option<f64>,
    /// The next-token loss on pretraining text, before its coefficient.
    pub ptx: Option<f64>,
    /// Sums over tokens.
    pub stats: PolicyStats,
    /// Global norm of the gradient, once a step was taken.
    pub norm: Option<f64>,
}

impl PolicySums {
    /// Each term by its name.
    pub fn losses(&self) -> Vec<(&'static str, f64)> {
        let terms = [
            ("policy", Some(self.loss)),
            ("KL", self.kl),
            ("entropy", self.entropy),
            ("ptx", self.ptx),
        ];
        let present = terms.into_iter();
        present
            .filter_map(|(name, term)| Some((name, term?)))
            .collect()
    }
}

impl Update<'_> {
    /// The actor's gradients of a minibatch, pretraining text apart.
    ///
    /// # Errors
    /// If the computation fails.
    pub(super) fn policy_gradients(&self, micros: &[Micro]) -> Result<PolicySums> {
        self.roles.actor.params().zero_grad()?;
        let mut sums = PolicySums::default();
        for micro in micros {
            self.policy_pass(micro, &mut sums)?;
        }
        Ok(sums)
    }

    fn policy_pass(&self, micro: &Micro, sums: &mut PolicySums) -> Result<()> {
        let config = self.config;
        let (found, whole) = self.forward(micro)?;
        let weights = micro.weights(config.loss_aggregation())?;
        let old = micro.pick(micro.batch().old_log_probs);
        let advantages = micro.pick(&micro.batch().targets.advantages);
        let clip = clip(config);
        let policy = policy_loss(&found.log_probs, &old, &advantages, &weights, &clip)?;
        sums.loss += policy.value;
        sums.stats.merge(&policy.stats);
        let loss = self.with_kl(policy.loss, whole.as_ref(), micro, &weights, sums)?;
        let loss = self.with_entropy(loss, &found, &weights, sums)?;
        loss.backward()?;
        Ok(())
    }

    /// Log-probs of the pass's tokens in the distributions that they were drawn from and, where the loss carries the KL, over the
    /// whole vocabulary.
    fn forward(&self, micro: &Micro) -> Result<(TokenLogProbs, Option<Tensor>)> {
        let (actor, packed) = (&self.roles.actor, &micro.packed);
        let temperature = self.config.generation.temperature as f32;
        let gradient = gradient(&self.config.training);
        if micro.batch().targets.loss_kl_coef.is_none() {
            return Ok((packed.log_probs(actor, temperature, gradient)?, None));
        }
        let BothLogProbs { kept, whole } = packed.both_log_probs(actor, temperature, gradient)?;
        Ok((kept, Some(whole)))
    }

    /// `loss` and the KL to the reference, where the loss carries it: then `whole` holds log-probs over the whole vocabulary.
    fn with_kl(
        &self,
        loss: Tensor,
        whole: Option<&Tensor>,
        micro: &Micro,
        weights: &[f64],
        sums: &mut PolicySums,
    ) -> Result<Tensor> {
        let Some((whole, coef)) = whole.zip(micro.batch().targets.loss_kl_coef) else {
            return Ok(loss);
        };
        let reference = micro.batch().reference_log_probs;
        let reference = micro.pick(reference.context("a KL without a reference")?);
        let kl = kl_loss(whole, &reference, self.config.kl_estimator(), weights)?;
        *sums.kl.get_or_insert(0.0) += f64::from(kl.to_scalar::<f32>()?);
        Ok((loss + (kl * coef)?)?)
    }

    /// `loss` less the entropy bonus. Without one the entropy has no part in the graph's backward pass, and the head's kernel leaves
    /// out its share.
    fn with_entropy(
        &self,
        loss: Tensor,
        found: &TokenLogProbs,
        weights: &[f64],
        sums: &mut PolicySums,
    ) -> Result<Tensor> {
        let coef = self.config.update.entropy_coef;
        if coef == 0.0 {
            return Ok(loss);
        }
        let entropy = weighted_sum(&found.entropy, weights)?;
        *sums.entropy.get_or_insert(0.0) += f64::from(entropy.to_scalar::<f32>()?);
        Ok((loss - (entropy * coef)?)?)
    }
}

fn clip(config: &Ppo) -> PolicyLossConfig {
    PolicyLossConfig {
        cliprange_low: config.objective.cliprange,
        cliprange_high: config.objective.cliprange_high(),
        dual_clip: config.update.dual_clip,
    }
}
