//! The critic's loss: squared error to the return, clipped around the rollout's value.
//!
//! The clip comes from OpenAI's `baselines` PPO2 and `lm-human-preferences`; no paper has it. See
//! Huang et al. 2022, "The 37 Implementation Details of Proximal Policy Optimization", detail 9.

use candle_core::Tensor;

use super::differentiable::{attach_gradient, host_values};
use super::error::{Result, check_length, check_not_negative};
use super::stats::Real;

/// Settings of the value loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValueLossConfig {
    /// Largest distance of a value from the rollout's value before its gradient stops; `None` for
    /// no limit.
    pub cliprange_value: Option<f64>,
}

/// Sums over the tokens of a microbatch; [`merge`](Self::merge) them over a minibatch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ValueStats {
    /// Number of tokens seen.
    pub tokens: usize,
    /// Tokens whose clipped error exceeds the unclipped one.
    pub clipped: usize,
}

impl ValueStats {
    /// Adds the tokens of another microbatch.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.clipped += other.clipped;
    }

    /// `value/clip_fraction`; NaN without tokens.
    pub fn clip_fraction(&self) -> f64 {
        self.clipped as f64 / self.tokens as f64
    }
}

/// Result of [`value_loss`].
#[derive(Debug, Clone)]
pub struct ValueLoss {
    /// Scalar to call `backward` on; `vf_coef` is not in it.
    pub loss: Tensor,
    /// The value of `loss` on the host, in full precision. The values of a minibatch's microbatches
    /// add up to `loss/value`.
    pub value: f64,
    /// Unweighted sums over the tokens.
    pub stats: ValueStats,
}

/// ½ Σ wₜ max((V − R)², (V_old + clip(V − V_old, ±c) − R)²).
///
/// All arguments are `[n]`; `new_values` is the differentiable one. `weights` come from
/// [`LossAggregation::weights`](super::LossAggregation::weights), taken over the whole minibatch.
/// At a tie the unclipped error is taken: inside the range the gradient is wₜ (V − R).
///
/// # Errors
/// A length error if the arguments differ in length; a range error for a negative clip range;
/// candle's errors.
pub fn value_loss<V: Real, R: Real>(
    new_values: &Tensor,
    old_values: &[V],
    returns: &[R],
    weights: &[f64],
    config: &ValueLossConfig,
) -> Result<ValueLoss> {
    // Without a limit the clip is never reached.
    let limit = config.cliprange_value.unwrap_or(f64::MAX);
    check_not_negative("the value clip range", limit)?;
    let new = host_values(new_values)?;
    check_length("old values", old_values.len(), new.len())?;
    check_length("returns", returns.len(), new.len())?;
    check_length("weights", weights.len(), new.len())?;
    let (mut value, mut gradient, mut stats) =
        (0.0, Vec::with_capacity(new.len()), ValueStats::default());
    for t in 0..new.len() {
        let (old, target) = (old_values[t].into(), returns[t].into());
        let error = new[t] - target;
        let moved = new[t] - old;
        let clipped_error = old + moved.clamp(-limit, limit) - target;
        stats.tokens += 1;
        // The first condition keeps rounding inside the range from counting as a clip.
        if moved.abs() > limit && clipped_error.abs() > error.abs() {
            stats.clipped += 1;
            value += 0.5 * weights[t] * clipped_error * clipped_error;
            gradient.push(0.0);
        } else {
            value += 0.5 * weights[t] * error * error;
            gradient.push(weights[t] * error);
        }
    }
    Ok(ValueLoss {
        loss: attach_gradient(new_values, value, gradient)?,
        value,
        stats,
    })
}

#[cfg(test)]
mod tests {
    use super::super::differentiable::tests::{gradient, var};
    use super::*;

    const CLIPPED: ValueLossConfig = ValueLossConfig {
        cliprange_value: Some(0.2),
    };
    const FREE: ValueLossConfig = ValueLossConfig {
        cliprange_value: None,
    };

    fn one(new: f64, old: f64, target: f64, config: ValueLossConfig) -> (f64, f64, ValueStats) {
        let x = var(&[new]);
        let result = value_loss(&x, &[old], &[target], &[1.0], &config).unwrap();
        (result.value, gradient(&result.loss, &x)[0], result.stats)
    }

    #[test]
    fn an_unmoved_value_has_the_whole_gradient() {
        // 0.1 + (0.3 − 0.1) is not 0.3 in floating point: rounding must not count as clipping.
        for (new, old) in [(0.5, 0.5), (0.3, 0.1)] {
            let (loss, gradient, stats) = one(new, old, 2.0, CLIPPED);
            assert_eq!(
                (loss, gradient, stats.clipped),
                (0.5 * (new - 2.0) * (new - 2.0), new - 2.0, 0)
            );
        }
    }

    #[test]
    fn the_clip_stops_a_value_that_moved_far_towards_its_return() {
        let (loss, gradient, stats) = one(1.0, 0.0, 2.0, CLIPPED);
        assert!((loss - 0.5 * 1.8 * 1.8).abs() < 1e-12);
        assert_eq!((gradient, stats.clip_fraction()), (0.0, 1.0));
    }

    #[test]
    fn the_clip_lets_a_value_come_back() {
        let (_, gradient, stats) = one(-1.0, 0.0, 2.0, CLIPPED);
        assert_eq!((gradient, stats.clipped), (-3.0, 0));
    }

    #[test]
    fn without_a_clip_it_is_the_squared_error() {
        let (loss, gradient, stats) = one(9.0, 0.0, 10.0, FREE);
        assert_eq!((loss, gradient, stats.clipped), (0.5, -1.0, 0));
    }

    #[test]
    fn a_nan_reaches_the_loss() {
        assert!(one(f64::NAN, 0.0, 1.0, CLIPPED).0.is_nan());
        assert!(one(0.0, 0.0, f64::NAN, CLIPPED).0.is_nan());
    }
}
