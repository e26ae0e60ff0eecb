//! The reward of each token: the KL penalty everywhere, the score at the end.
//!
//! Ziegler et al. 2019, eq. 2, spread over tokens as in Stiennon et al. 2020, "Learning to
//! Summarize from Human Feedback", section 3.4. [`super::score`] shapes the scores.

use super::error::Result;
use super::ragged_rows::RaggedRows;
use super::stats::Real;

/// rₜ = −kl_coef · kₜ, plus the score at each sequence's last token: `[n]`.
///
/// `scores` is `[B]`, `kl` (any estimator) is `[n]`. The rewards of a sequence sum to
/// score − kl_coef · Σ k; whitening, if any, acts on the result.
///
/// ```
/// use collimate::rlhf::{RaggedRows, reward::token_rewards};
/// let rows = RaggedRows::new(&[0, 2, 3]).unwrap();
/// let rewards = token_rewards(&[1.0, -1.0], &[0.5, 1.0, 2.0], 0.1, rows).unwrap();
/// assert_eq!(rewards, [-0.05, 0.9, -1.2]);
/// ```
///
/// # Errors
/// A length error if `scores` has not one element per sequence or `kl` not one per token.
pub fn token_rewards<S: Real, K: Real>(
    scores: &[S],
    kl: &[K],
    kl_coef: f64,
    rows: RaggedRows,
) -> Result<Vec<f64>> {
    rows.check_per_sequence("scores", scores.len())?;
    rows.check_per_token("per-token KL", kl.len())?;
    let mut rewards: Vec<f64> = kl.iter().map(|&k| -kl_coef * k.into()).collect();
    for (row, &score) in rows.iter().zip(scores) {
        rewards[row.end - 1] += score.into();
    }
    Ok(rewards)
}

/// `objective/rlhf_reward`: mean over sequences of score − kl_coef · Σ k; NaN without sequences.
///
/// # Errors
/// As [`token_rewards`].
pub fn rlhf_reward<S: Real, K: Real>(
    scores: &[S],
    kl: &[K],
    kl_coef: f64,
    rows: RaggedRows,
) -> Result<f64> {
    let rewards = token_rewards(scores, kl, kl_coef, rows)?;
    Ok(super::stats::mean(&rows.sums("rewards", &rewards)?))
}

#[cfg(test)]
mod tests {
    use super::super::RlhfError;
    use super::*;

    #[test]
    fn rewards_of_a_sequence_sum_to_score_minus_kl() {
        let offsets = [0, 3, 4, 9];
        let rows = RaggedRows::new(&offsets).unwrap();
        let scores = [0.7, -2.0, 0.1];
        let kl: Vec<f64> = (0..9).map(|t| f64::from(t * t % 7) * 0.3 - 0.6).collect();
        let rewards = token_rewards(&scores, &kl, 0.05, rows).unwrap();
        let (reward_sums, kl_sums) = (
            rows.sums("r", &rewards).unwrap(),
            rows.sums("k", &kl).unwrap(),
        );
        for b in 0..3 {
            assert!((reward_sums[b] - (scores[b] - 0.05 * kl_sums[b])).abs() < 1e-12);
        }
        let objective = rlhf_reward(&scores, &kl, 0.05, rows).unwrap();
        assert!((objective - reward_sums.iter().sum::<f64>() / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_missing_score_is_an_error() {
        let rows = RaggedRows::new(&[0, 1, 2]).unwrap();
        let error = token_rewards(&[1.0], &[0.0, 0.0], 0.1, rows).unwrap_err();
        assert!(matches!(
            error,
            RlhfError::Length {
                what: "scores",
                found: 1,
                expected: 2
            }
        ));
    }
}
