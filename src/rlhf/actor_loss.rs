//! The actor's loss of a microbatch: the clipped policy loss, the KL to the reference where the
//! loss carries it, and the entropy bonus.
//!
//! loss = policy loss + kl_coef · KL − entropy_coef · entropy, each term aggregated over tokens by
//! the same weights. Left out: PPO-ptx, whose gradient comes from other text by a pass of its own.

use candle_core::{DType, Tensor};

use super::differentiable::weighted_sum;
use super::error::Result;
use super::kl::{KlEstimator, kl_loss};
use super::policy_loss::{PolicyLossConfig, PolicyStats, policy_loss};
use super::stats::Real;

/// The generated tokens of a microbatch; every quantity is `[n]`.
#[derive(Debug)]
pub struct ActorTokens<'a, T> {
    /// Log-probs under the actor, in the distributions that the tokens were drawn from;
    /// differentiable.
    pub log_probs: &'a Tensor,
    /// Entropies of these distributions, in nats; differentiable.
    pub entropy: &'a Tensor,
    /// Log-probs under the policy that sampled the tokens, in the same distributions.
    pub old_log_probs: &'a [T],
    /// Advantages.
    pub advantages: &'a [f64],
    /// Weights of the tokens, from [`LossAggregation::weights`](super::LossAggregation::weights).
    pub weights: &'a [f64],
    /// The KL to the reference; `None` where the rewards carry it, or nothing does.
    pub kl: Option<KlTerm<'a, T>>,
}

/// The KL to the reference as a term of the loss; every quantity is `[n]`.
#[derive(Debug)]
pub struct KlTerm<'a, T> {
    /// Log-probs under the actor over the whole vocabulary; differentiable.
    pub log_probs: &'a Tensor,
    /// Log-probs under the reference over the whole vocabulary.
    pub ref_log_probs: &'a [T],
    /// Estimator of the per-token KL.
    pub estimator: KlEstimator,
    /// Weight of the term.
    pub coef: f64,
}

/// Result of [`actor_loss`].
#[derive(Debug)]
pub struct ActorLoss {
    /// Scalar to call `backward` on.
    pub loss: Tensor,
    /// The clipped policy loss.
    pub policy: f64,
    /// The KL before its coefficient; `None` where the loss carries no KL.
    pub kl: Option<f64>,
    /// The entropy before its coefficient; `None` where there is no bonus.
    pub entropy: Option<f64>,
    /// Unweighted sums over the tokens.
    pub stats: PolicyStats,
}

/// The loss of a microbatch with all its terms.
///
/// With `entropy_coef` 0 the entropy is not part of the graph, so that its gradient is not
/// computed.
///
/// # Errors
/// A length error if the quantities differ in length; a range error for an impossible clip;
/// candle's errors.
pub fn actor_loss<T: Real>(
    tokens: &ActorTokens<T>,
    clip: &PolicyLossConfig,
    entropy_coef: f64,
) -> Result<ActorLoss> {
    let weights = tokens.weights;
    let policy = policy_loss(
        tokens.log_probs,
        tokens.old_log_probs,
        tokens.advantages,
        weights,
        clip,
    )?;
    let (mut loss, mut kl, mut entropy) = (policy.loss, None, None);
    if let Some(term) = &tokens.kl {
        let found = kl_loss(term.log_probs, term.ref_log_probs, term.estimator, weights)?;
        kl = Some(host_value(&found)?);
        loss = (loss + (found * term.coef)?)?;
    }
    if entropy_coef != 0.0 {
        let found = weighted_sum(tokens.entropy, weights)?;
        entropy = Some(host_value(&found)?);
        loss = (loss - (found * entropy_coef)?)?;
    }
    Ok(ActorLoss {
        loss,
        policy: policy.value,
        kl,
        entropy,
        stats: policy.stats,
    })
}

fn host_value(scalar: &Tensor) -> Result<f64> {
    Ok(scalar.to_dtype(DType::F64)?.to_scalar()?)
}
