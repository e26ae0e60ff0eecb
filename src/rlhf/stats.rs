//! Mean, variance, whitening and explained variance: one definition for every use.
//!
//! All means run over the response tokens, all variances are biased (divided by n, not n − 1), as
//! in OpenAI's `lm-human-preferences` and Huang et al. 2024, "The N+ Implementation Details of RLHF
//! with PPO". The one exception is GRPO's group deviation, in `advantage::group`.

use super::error::{Result, check_length};

/// A number that a host function accepts: `f32` or `f64`. Arithmetic is in `f64`.
pub trait Real: Copy + Into<f64> {}

impl<T: Copy + Into<f64>> Real for T {}

/// Whether whitening keeps the mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mean {
    /// The result has the mean of the input. Used for rewards, whose sign carries meaning.
    Keep,
    /// The result has mean zero. Used for advantages.
    Remove,
}

/// Added to the variance before the square root.
const WHITEN_EPSILON: f64 = 1e-8;

/// Arithmetic mean; NaN if there are no values.
pub fn mean<T: Real>(values: &[T]) -> f64 {
    values.iter().map(|&v| v.into()).sum::<f64>() / values.len() as f64
}

/// Biased variance, Σ(x − mean)² / n; NaN if there are no values.
pub fn variance<T: Real>(values: &[T]) -> f64 {
    let mean = mean(values);
    let squares = values.iter().map(|&v| (v.into() - mean).powi(2));
    squares.sum::<f64>() / values.len() as f64
}

/// (x − mean) / √(variance + 1e-8), with the mean added back under [`Mean::Keep`].
///
/// The statistics are those of the whole slice, so pass the whole batch, not a minibatch.
pub fn whiten<T: Real>(values: &[T], keep: Mean) -> Vec<f64> {
    let centre = mean(values);
    let scale = (variance(values) + WHITEN_EPSILON).sqrt();
    let shift = match keep {
        Mean::Keep => centre,
        Mean::Remove => 0.0,
    };
    values
        .iter()
        .map(|&v| (v.into() - centre) / scale + shift)
        .collect()
}

/// Explained variance 1 − Var(returns − values) / Var(returns): 1 for a perfect critic, 0 for one
/// that knows only the mean, negative for a worse one. `None` if the returns do not vary.
///
/// # Errors
/// [`RlhfError::Length`](super::RlhfError::Length) if the lengths differ.
pub fn explained_variance<V: Real, R: Real>(values: &[V], returns: &[R]) -> Result<Option<f64>> {
    check_length("returns", returns.len(), values.len())?;
    let residuals: Vec<f64> = values
        .iter()
        .zip(returns)
        .map(|(&v, &r)| r.into() - v.into())
        .collect();
    let total = variance(returns);
    Ok((total > 0.0).then(|| 1.0 - variance(&residuals) / total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variance_is_biased() {
        assert_eq!(variance(&[1.0, 3.0]), 1.0);
    }

    #[test]
    fn whitening_removes_or_keeps_the_mean() {
        let values = [1.0f32, 2.0, 6.0];
        let removed = whiten(&values, Mean::Remove);
        let kept = whiten(&values, Mean::Keep);
        assert!(mean(&removed).abs() < 1e-12 && (mean(&kept) - 3.0).abs() < 1e-12);
        for whitened in [removed, kept] {
            assert!((variance(&whitened) - 1.0).abs() < 1e-8);
        }
    }

    #[test]
    fn whitening_equal_values_gives_zeros() {
        assert_eq!(whiten(&[2.0, 2.0, 2.0], Mean::Remove), [0.0; 3]);
    }

    #[test]
    fn explained_variance_ranks_critics() {
        let returns = [1.0, 2.0, 3.0];
        let of = |values: [f64; 3]| explained_variance(&values, &returns).unwrap().unwrap();
        assert_eq!(of([1.0, 2.0, 3.0]), 1.0);
        assert_eq!(of([7.0, 7.0, 7.0]), 0.0);
        assert!(of([3.0, 2.0, 1.0]) < 0.0);
        assert_eq!(explained_variance(&[1.0, 2.0], &[5.0, 5.0]).unwrap(), None);
    }
}
