//! KL divergence from the reference policy, estimated from the sampled tokens.
//!
//! Schulman 2020, "Approximating KL Divergence" (<http://joschu.net/blog/kl-approx.html>). For a
//! token drawn from π, with d = log π − log π_ref:
//!
//! | estimator | value | |
//! |---|---|---|
//! | k1 | d | unbiased, may be negative, high variance |
//! | k2 | d²/2 | biased, low variance |
//! | k3 | exp(−d) − 1 + d | unbiased, never negative |
//!
//! No estimate is clipped: where π has fallen far below π_ref, k3 and its gradient grow with
//! π_ref/π, as the pull back must. Only the exponent is guarded, so that no `f32` overflows: above
//! −d = 80, where exp is 6e34, k3 continues along its tangent.
//!
//! Both log-probs are over the whole vocabulary at the sampling temperature, also where top-k,
//! top-p, min-p or a mask restricted sampling. Renormalised over such a set, two policies with the
//! same proportions inside it would count as equal, however much probability has left or entered
//! the set. (PPO's ratio is different: it compares π with the distribution that the token was drawn
//! from.) Tokens of a restricted draw are a sample of the restricted π, so the means of k1 and k3
//! over them are biased estimates of the KL between the whole distributions.
//!
//! As a penalty in the reward the estimate is a constant ([`KlEstimator::per_token`]); as a loss
//! term it is differentiated ([`kl_loss`]). [`super::kl_controller`] adapts the coefficient.

use std::fmt;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::differentiable::{attach_gradient, host_values};
use super::error::{Result, check_length};
use super::ragged_rows::RaggedRows;
use super::stats::{Real, mean};

/// Largest exponent of k3; `f32` overflows at 88.7.
const MAX_EXPONENT: f64 = 80.0;

/// Estimator of the per-token KL, by Schulman's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KlEstimator {
    /// log π − log π_ref: unbiased, may be negative.
    K1,
    /// (log π − log π_ref)² / 2: never negative, biased.
    K2,
    /// exp(−k1) − 1 + k1: never negative, unbiased.
    K3,
}

impl fmt::Display for KlEstimator {
    /// The word of the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::K1 => "k1",
            Self::K2 => "k2",
            Self::K3 => "k3",
        })
    }
}

impl KlEstimator {
    /// The estimate for one token, from d = log π − log π_ref.
    pub fn estimate(self, d: f64) -> f64 {
        match self {
            Self::K1 => d,
            Self::K2 => 0.5 * d * d,
            Self::K3 => guarded_exp_m1(-d) + d,
        }
    }

    /// d(estimate)/d(log π).
    fn derivative(self, d: f64) -> f64 {
        match self {
            Self::K1 => 1.0,
            Self::K2 => d,
            Self::K3 if -d > MAX_EXPONENT => -MAX_EXPONENT.exp_m1(),
            Self::K3 => -(-d).exp_m1(),
        }
    }

    /// The estimate for each token from its log-probs under the policy and the reference: `[n]`.
    ///
    /// # Errors
    /// A length error if the lengths differ.
    pub fn per_token<P: Real, R: Real>(
        self,
        log_probs: &[P],
        ref_log_probs: &[R],
    ) -> Result<Vec<f64>> {
        check_length("reference log-probs", ref_log_probs.len(), log_probs.len())?;
        let pairs = log_probs.iter().zip(ref_log_probs);
        Ok(pairs
            .map(|(&p, &r)| self.estimate(p.into() - r.into()))
            .collect())
    }
}

/// exp(x) − 1, exact for small x; above [`MAX_EXPONENT`] its tangent there.
fn guarded_exp_m1(x: f64) -> f64 {
    match x > MAX_EXPONENT {
        true => MAX_EXPONENT.exp_m1() + MAX_EXPONENT.exp() * (x - MAX_EXPONENT),
        false => x.exp_m1(),
    }
}

/// `objective/kl`: mean over sequences of Σₜ k1, from log-probs over the whole vocabulary; NaN
/// without sequences.
///
/// # Errors
/// A length error if an argument has not one element per token.
pub fn objective_kl<P: Real, R: Real>(
    log_probs: &[P],
    ref_log_probs: &[R],
    rows: RaggedRows,
) -> Result<f64> {
    let k1 = KlEstimator::K1.per_token(log_probs, ref_log_probs)?;
    Ok(mean(&rows.sums("log-probs", &k1)?))
}

/// Σ wₜ kₜ, differentiable in `log_probs` `[n]`: the KL term of a loss, before its coefficient.
///
/// `weights` come from [`LossAggregation::weights`](super::LossAggregation::weights). The gradient
/// of k1 is the weight alone, zero in expectation: it pulls towards nothing. Use k2 (whose gradient
/// is that of the true KL on policy) or k3.
///
/// # Errors
/// A length error if the arguments differ in length; candle's errors.
pub fn kl_loss<R: Real>(
    log_probs: &Tensor,
    ref_log_probs: &[R],
    estimator: KlEstimator,
    weights: &[f64],
) -> Result<Tensor> {
    let policy = host_values(log_probs)?;
    check_length("reference log-probs", ref_log_probs.len(), policy.len())?;
    check_length("weights", weights.len(), policy.len())?;
    let (mut loss, mut gradient) = (0.0, Vec::with_capacity(policy.len()));
    for ((&p, &r), &weight) in policy.iter().zip(ref_log_probs).zip(weights) {
        let d = p - r.into();
        loss += weight * estimator.estimate(d);
        gradient.push(weight * estimator.derivative(d));
    }
    attach_gradient(log_probs, loss, gradient)
}

#[cfg(test)]
mod tests {
    use super::super::differentiable::tests::{gradient, var};
    use super::*;

    const ALL: [KlEstimator; 3] = [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3];

    #[test]
    fn equal_policies_have_no_divergence() {
        for estimator in ALL {
            assert_eq!(estimator.estimate(0.0), 0.0);
        }
    }

    #[test]
    fn k3_is_never_negative_and_no_f32_overflows() {
        let bound = f64::from(f32::MAX);
        for d in [-1e3, -90.0, -25.0, -2.5, -1e-9, 1e-9, 3.0, 25.0, 1e3] {
            let (k3, slope) = (KlEstimator::K3.estimate(d), KlEstimator::K3.derivative(d));
            assert!((0.0..bound).contains(&k3), "d = {d}: {k3}");
            assert!(slope.abs() < bound && slope.signum() == d.signum());
        }
        assert!(KlEstimator::K3.estimate(f64::NAN).is_nan());
        assert!(KlEstimator::K3.derivative(f64::NAN).is_nan());
    }

    /// The further π falls below π_ref, the stronger the pull back.
    #[test]
    fn the_pull_of_k3_does_not_vanish() {
        let pull = |d: f64| -KlEstimator::K3.derivative(d);
        for pair in [0.0, -1.0, -2.6, -5.0, -10.0, -40.0, -80.0].windows(2) {
            assert!(pull(pair[1]) > pull(pair[0]), "d = {}", pair[1]);
        }
        assert_eq!(pull(-200.0), pull(-80.0));
    }

    #[test]
    fn objective_kl_is_a_mean_over_sequences_not_tokens() {
        let rows = RaggedRows::new(&[0, 1, 4]).unwrap();
        let kl = objective_kl(&[-1.0, -1.0, -1.0, -1.0], &[-2.0, -1.5, -1.5, -1.5], rows).unwrap();
        assert_eq!(kl, (1.0 + 1.5) / 2.0);
    }

    #[test]
    fn the_loss_gradient_is_its_finite_difference() {
        // π lies 13-fold below the reference and more at the third and fourth token, far above it
        // at the last.
        let (at, reference) = (
            [-1.0, -0.3, -4.0, -9.0, -1.0],
            [-1.2, -0.9, -1.4, -1.0, -26.0],
        );
        let weights = [0.5, 0.25, 1.0, 1.0, 1.0];
        for estimator in ALL {
            let x = var(&at);
            let loss = kl_loss(&x, &reference, estimator, &weights).unwrap();
            for (i, found) in gradient(&loss, &x).into_iter().enumerate() {
                let of = |step: f64| weights[i] * estimator.estimate(at[i] + step - reference[i]);
                let expected = (of(1e-6) - of(-1e-6)) / 2e-6;
                // A central difference of step 1e-6 loses about ten of sixteen digits.
                assert!(
                    (found - expected).abs() < 1e-6 * expected.abs().max(1.0),
                    "{estimator:?} token {i}: {found} against {expected}"
                );
            }
        }
    }
}
