//! The actor's gradients of a minibatch.

use anyhow::{Context as _, Result};
use candle_core::Tensor;

use super::{ActorCriticUpdate, Microbatch};
use crate::config::Ppo;
use crate::ops::head::{BothLogProbs, TokenLogProbs};
use crate::ops::work::{self, DeviceWork};
use crate::rlhf::{ActorLoss, ActorTokens, KlTerm, PolicyLossConfig, PolicyStats, actor_loss};
use crate::train::configured::gradient;

/// Terms of the actor's loss over one minibatch; a term that the loss does not have is `None`.
#[derive(Default)]
pub struct PolicySums {
    /// The clipped policy loss.
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
    /// Each term of the loss by its name.
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

    fn add(&mut self, microbatch: &ActorLoss) {
        let add = |sum: &mut Option<f64>, term: Option<f64>| {
            if let Some(term) = term {
                *sum.get_or_insert(0.0) += term;
            }
        };
        self.loss += microbatch.policy;
        add(&mut self.kl, microbatch.kl);
        add(&mut self.entropy, microbatch.entropy);
        self.stats.merge(&microbatch.stats);
    }
}

impl ActorCriticUpdate<'_> {
    /// Adds the gradients of a minibatch to the actor's parameters, without those of PPO-ptx.
    ///
    /// # Errors
    /// If the computation fails.
    pub(super) fn policy_gradients(&self, microbatches: &[Microbatch]) -> Result<PolicySums> {
        self.roles.actor.params().zero_grad()?;
        let mut sums = PolicySums::default();
        for microbatch in microbatches {
            let _work = work::begin(DeviceWork::Training("actor"));
            let found = self.actor_loss(microbatch)?;
            found.loss.backward()?;
            sums.add(&found);
        }
        Ok(sums)
    }

    fn actor_loss(&self, microbatch: &Microbatch) -> Result<ActorLoss> {
        let (config, experience) = (self.config, microbatch.experience());
        let (found, whole) = self.forward(microbatch)?;
        let reference = experience.reference_log_probs();
        let reference = reference.map(|reference| microbatch.select(reference));
        let kl = match (&whole, self.loss_kl_coef()) {
            (Some(log_probs), Some(coef)) => Some(KlTerm {
                log_probs,
                ref_log_probs: reference.as_deref().context("a KL without a reference")?,
                estimator: config.kl_estimator(),
                coef,
            }),
            _ => None,
        };
        let tokens = ActorTokens {
            log_probs: &found.log_probs,
            entropy: &found.entropy,
            old_log_probs: &microbatch.select(&experience.policy()?.log_probs),
            advantages: &microbatch.select(experience.advantages()?),
            weights: &microbatch.weights(config.loss_aggregation())?,
            kl,
        };
        let entropy_coef = config.update.entropy_coef;
        Ok(actor_loss(&tokens, &clip(config), entropy_coef)?)
    }

    /// Log-probs of the microbatch's tokens in the distributions that they were drawn from and,
    /// where the loss carries the KL, over the whole vocabulary.
    fn forward(&self, microbatch: &Microbatch) -> Result<(TokenLogProbs, Option<Tensor>)> {
        let (actor, packed) = (&self.roles.actor, &microbatch.packed);
        let temperature = self.config.generation.temperature as f32;
        let gradient = gradient(&self.config.training);
        if self.loss_kl_coef().is_none() {
            return Ok((packed.log_probs(actor, temperature, gradient)?, None));
        }
        let BothLogProbs { kept, whole } = packed.both_log_probs(actor, temperature, gradient)?;
        Ok((kept, Some(whole)))
    }
}

fn clip(config: &Ppo) -> PolicyLossConfig {
    PolicyLossConfig {
        cliprange_low: config.objective.cliprange,
        cliprange_high: config.objective.cliprange_high(),
        dual_clip: config.update.dual_clip,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_terms_of_microbatches_add_up() {
        let microbatch = |policy, kl, entropy| ActorLoss {
            loss: Tensor::new(0.0, &Device::Cpu).unwrap(),
            policy,
            kl,
            entropy,
            stats: PolicyStats {
                clipped: 2,
                ..PolicyStats::default()
            },
        };
        let mut sums = PolicySums::default();
        sums.add(&microbatch(1.0, Some(0.25), None));
        sums.add(&microbatch(0.5, Some(0.5), None));
        assert_eq!((sums.loss, sums.kl, sums.entropy), (1.5, Some(0.75), None));
        sums.add(&microbatch(0.0, None, Some(2.0)));
        sums.add(&microbatch(0.0, None, Some(1.0)));
        assert_eq!((sums.kl, sums.entropy), (Some(0.75), Some(3.0)));
        assert_eq!(sums.stats.clipped, 8);
    }
}
