//! Losses on pairs of a chosen and a rejected answer.
//!
//! [`bradley_terry`] trains a reward model on them, [`direct_preference`] and [`odds_ratio`] a
//! policy, without a reward model.
//!
//! Every loss takes the counts of the whole optimizer step, such as its pairs: losses are means
//! over the step, and the losses of its microbatches add up to them.

mod bradley_terry;
mod direct;
mod odds_ratio;

pub use bradley_terry::{BradleyTerryLoss, bradley_terry};
pub use direct::{
    DirectPreferenceConfig, DirectPreferenceLoss, DirectStats, DpoLossType, direct_preference,
};
pub use odds_ratio::{OddsRatioLoss, OddsRatioStats, OddsRatioTotals, odds_ratio};

/// Sums over the pairs of a microbatch; [`merge`](Self::merge) them over a step, then read the
/// means.
///
/// "Reward" is the reward model's score, or DPO's implicit reward β (log π − log π_ref).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PreferenceStats {
    /// Number of pairs seen.
    pub pairs: usize,
    /// Pairs whose chosen answer has the higher reward.
    pub correct: usize,
    /// Σ reward of the chosen answers.
    pub chosen_sum: f64,
    /// Σ reward of the rejected answers.
    pub rejected_sum: f64,
}

impl PreferenceStats {
    fn observe(&mut self, chosen: f64, rejected: f64) {
        self.pairs += 1;
        self.correct += usize::from(chosen > rejected);
        self.chosen_sum += chosen;
        self.rejected_sum += rejected;
    }

    /// Adds the pairs of another microbatch.
    pub fn merge(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.correct += other.correct;
        self.chosen_sum += other.chosen_sum;
        self.rejected_sum += other.rejected_sum;
    }

    /// Share of pairs whose chosen answer has the higher reward; a tie counts as wrong. NaN without
    /// pairs.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.pairs as f64
    }

    /// Mean of reward(chosen) − reward(rejected); NaN without pairs.
    pub fn margin(&self) -> f64 {
        (self.chosen_sum - self.rejected_sum) / self.pairs as f64
    }
}

/// 1 / (1 + exp(−x)). For very negative x exp overflows to infinity, which gives the correct 0.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// log σ(x) without overflow: min(x, 0) − log(1 + exp(−|x|)).
fn log_sigmoid(x: f64) -> f64 {
    // `f64::min` would turn NaN into 0.
    let negative_part = if x > 0.0 { 0.0 } else { x };
    negative_part - (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sigmoid_is_exact_far_out() {
        assert_eq!(log_sigmoid(-800.0), -800.0);
        assert_eq!(log_sigmoid(800.0), 0.0);
        assert!((log_sigmoid(0.0) + 2f64.ln()).abs() < 1e-15);
        assert!(log_sigmoid(f64::NAN).is_nan());
        assert_eq!((sigmoid(-800.0), sigmoid(800.0)), (0.0, 1.0));
    }
}
