//! Statistics of the ratio between two sets of log-probs of the same tokens.

use super::error::{Result, check_length};
use super::stats::Real;

/// Sums over tokens of ratio ρ = exp(log π_new − log π_old) and its deviations.
///
/// These are sums, so that microbatches [`merge`](Self::merge); the methods compute the means.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RatioStats {
    /// Number of tokens seen.
    pub tokens: usize,
    /// Σ ρ.
    pub ratio_sum: f64,
    /// Largest |ρ − 1|; NaN once any ratio is.
    pub ratio_max_dev: f64,
    /// ½ Σ (log π_new − log π_old)².
    pub half_square_sum: f64,
}

impl RatioStats {
    /// Statistics of `new` over `old` log-probs, both `[n]`.
    ///
    /// Applied to the log-probs of a rollout and of the training forward it measures their
    /// agreement: all deviations are 0 if they have the same bits.
    ///
    /// # Errors
    /// A length error if the lengths differ.
    pub fn between<N: Real, O: Real>(new: &[N], old: &[O]) -> Result<Self> {
        check_length("old log-probs", old.len(), new.len())?;
        let mut stats = Self::default();
        for (&new, &old) in new.iter().zip(old) {
            let log_ratio = new.into() - old.into();
            stats.observe(log_ratio, log_ratio.exp());
        }
        Ok(stats)
    }

    /// Counts one token.
    pub(super) fn observe(&mut self, log_ratio: f64, ratio: f64) {
        self.tokens += 1;
        self.ratio_sum += ratio;
        self.half_square_sum += 0.5 * log_ratio * log_ratio;
        self.ratio_max_dev = larger(self.ratio_max_dev, (ratio - 1.0).abs());
    }

    /// Adds the tokens of another microbatch.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.ratio_sum += other.ratio_sum;
        self.half_square_sum += other.half_square_sum;
        self.ratio_max_dev = larger(self.ratio_max_dev, other.ratio_max_dev);
    }

    /// Token mean of the ratio; NaN without tokens.
    pub fn ratio_mean(&self) -> f64 {
        self.ratio_sum / self.tokens as f64
    }

    /// ½ token mean of (Δ log-prob)², k2 of Schulman 2020; NaN without tokens.
    pub fn approx_kl(&self) -> f64 {
        self.half_square_sum / self.tokens as f64
    }
}

/// The larger of two numbers, NaN if either is NaN; `f64::max` would drop the NaN.
fn larger(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_log_probs_have_ratio_exactly_one() {
        let log_probs = [-0.1f32, -7.3, -1e-4];
        let stats = RatioStats::between(&log_probs, &log_probs).unwrap();
        assert_eq!(
            (stats.ratio_mean(), stats.ratio_max_dev, stats.approx_kl()),
            (1.0, 0.0, 0.0)
        );
    }

    #[test]
    fn merging_parts_equals_the_whole() {
        let (new, old) = ([-1.0, -2.0, -0.5], [-1.25, -1.5, -0.5]);
        let mut merged = RatioStats::between(&new[..1], &old[..1]).unwrap();
        merged.merge(&RatioStats::between(&new[1..], &old[1..]).unwrap());
        let whole = RatioStats::between(&new, &old).unwrap();
        assert_eq!(
            (merged.tokens, merged.ratio_max_dev),
            (3, whole.ratio_max_dev)
        );
        assert!((merged.ratio_mean() - whole.ratio_mean()).abs() < 1e-15);
        assert_eq!(whole.approx_kl(), 0.5 * (0.0625 + 0.25) / 3.0);
    }

    #[test]
    fn a_nan_is_not_hidden() {
        let stats = RatioStats::between(&[f64::NAN, -1.0], &[-1.0, -2.0]).unwrap();
        assert!(stats.ratio_max_dev.is_nan());
    }
}
