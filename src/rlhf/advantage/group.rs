//! Baselines from several samples of one prompt; no critic.
//!
//! Scores are `[B]`, the samples of a prompt side by side, so that group g owns
//! `g * group_size..(g + 1) * group_size`. The result is `[B]`, one advantage a sequence.
//!
//! - GRPO: Shao et al. 2024, "DeepSeekMath", section 4.1.2.
//! - Dr. GRPO: Liu et al. 2025, "Understanding R1-Zero-Like Training", section 3.2.
//! - RLOO: Ahmadian et al. 2024, "Back to Basics", after Kool et al. 2019, "Buy 4 REINFORCE
//!   Samples, Get a Baseline for Free!".

use super::super::error::{Result, RlhfError};
use super::super::stats::{Real, mean};

/// Keeps a group of equal scores from dividing by zero; the value that verl uses.
const STD_EPSILON: f64 = 1e-6;

/// (s − mean) / (std + 1e-6) within each group; the deviation is the unbiased one.
///
/// # Errors
/// [`RlhfError::Groups`] if the scores are not whole groups of two or more.
pub fn grpo<T: Real>(scores: &[T], group_size: usize) -> Result<Vec<f64>> {
    by_group(scores, group_size, |group| {
        let centre = mean(group);
        let squares: f64 = group.iter().map(|s| (s - centre).powi(2)).sum();
        let std = (squares / (group.len() - 1) as f64).sqrt();
        group
            .iter()
            .map(|s| (s - centre) / (std + STD_EPSILON))
            .collect()
    })
}

/// s − mean within each group: GRPO without the deviation, which favours prompts that are too easy
/// or too hard.
///
/// # Errors
/// [`RlhfError::Groups`] if the scores are not whole groups of two or more.
pub fn dr_grpo<T: Real>(scores: &[T], group_size: usize) -> Result<Vec<f64>> {
    by_group(scores, group_size, |group| {
        let centre = mean(group);
        group.iter().map(|s| s - centre).collect()
    })
}

/// s − mean of the other samples of its group: an unbiased baseline, as it does not hold s itself.
///
/// # Errors
/// [`RlhfError::Groups`] if the scores are not whole groups of two or more.
pub fn rloo<T: Real>(scores: &[T], group_size: usize) -> Result<Vec<f64>> {
    by_group(scores, group_size, |group| {
        let sum: f64 = group.iter().sum();
        let others = (group.len() - 1) as f64;
        group.iter().map(|s| s - (sum - s) / others).collect()
    })
}

/// Applies `estimate` to each group and joins the results.
fn by_group<T: Real>(
    scores: &[T],
    group_size: usize,
    estimate: impl Fn(&[f64]) -> Vec<f64>,
) -> Result<Vec<f64>> {
    if group_size < 2 || !scores.len().is_multiple_of(group_size) {
        return Err(RlhfError::Groups {
            sequences: scores.len(),
            group_size,
        });
    }
    let scores: Vec<f64> = scores.iter().map(|&s| s.into()).collect();
    Ok(scores.chunks(group_size).flat_map(estimate).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_centred_apart() {
        assert_eq!(
            dr_grpo(&[1.0f32, 3.0, 10.0, 20.0], 2).unwrap(),
            [-1.0, 1.0, -5.0, 5.0]
        );
    }

    #[test]
    fn rloo_is_the_centred_score_scaled() {
        let scores = [0.3, -1.0, 2.0, 0.7];
        let scaled = dr_grpo(&scores, 4)
            .unwrap()
            .into_iter()
            .map(|a| a * 4.0 / 3.0);
        for (found, expected) in rloo(&scores, 4).unwrap().into_iter().zip(scaled) {
            assert!((found - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn equal_scores_teach_nothing() {
        for estimator in [grpo, dr_grpo, rloo] {
            assert_eq!(estimator(&[0.5, 0.5, 0.5, 0.5], 4).unwrap(), [0.0; 4]);
        }
    }

    #[test]
    fn incomplete_groups_are_refused() {
        for group_size in [0, 1, 3] {
            assert!(matches!(
                grpo(&[0.0; 4], group_size),
                Err(RlhfError::Groups { sequences: 4, .. })
            ));
        }
    }
}
