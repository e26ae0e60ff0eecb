//! Dynamic sampling: Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at
//! Scale", section 3.2, eq. 11.
//!
//! If all samples of a prompt have the same score, every group estimator gives advantage 0: the
//! prompt is too easy or too hard to learn from. Such groups are dropped and the next prompts take
//! their place. This file finds these groups and chooses a batch; the caller samples more.

use super::super::error::{Result, RlhfError};
use super::super::stats::Real;

/// For each group of samples side by side, whether their scores differ: `[B]` → `[groups]`.
///
/// NaN counts as different from every score, so that it is not dropped silently.
///
/// # Errors
/// [`RlhfError::Groups`] if the scores are not whole groups.
pub fn have_spread<T: Real>(scores: &[T], group_size: usize) -> Result<Vec<bool>> {
    if group_size == 0 || !scores.len().is_multiple_of(group_size) {
        return Err(RlhfError::Groups {
            sequences: scores.len(),
            group_size,
        });
    }
    let differs = |group: &[T]| {
        let first: f64 = group[0].into();
        group.iter().any(|&s| s.into() != first)
    };
    Ok(scores.chunks(group_size).map(differs).collect())
}

/// Indices of the groups that make a batch of `wanted`, in ascending order: the first groups with
/// spread and, if these are too few, the first ones without, so that the batch has its size. Fewer
/// than `wanted` only if there are no more groups.
///
/// ```
/// use collimate::rlhf::advantage::dynamic_sampling::choose;
/// assert_eq!(choose(&[false, true, false, true], 2), [1, 3]);
/// assert_eq!(choose(&[false, true, false, true], 3), [0, 1, 3]);
/// ```
pub fn choose(spread: &[bool], wanted: usize) -> Vec<usize> {
    let groups = |with: bool| (0..spread.len()).filter(move |&g| spread[g] == with);
    let mut chosen: Vec<usize> = groups(true).chain(groups(false)).take(wanted).collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_have_no_spread() {
        let scores = [1.0f32, 1.0, 0.0, 1.0, 0.0, 0.0];
        assert_eq!(have_spread(&scores, 2).unwrap(), [false, true, false]);
        assert_eq!(have_spread(&scores, 3).unwrap(), [true, true]);
        assert_eq!(have_spread(&scores, 1).unwrap(), [false; 6]);
        let broken = [f64::NAN, f64::NAN, 0.5, f64::NAN];
        assert_eq!(have_spread(&broken, 2).unwrap(), [true, true]);
        assert!(have_spread::<f32>(&[], 4).unwrap().is_empty());
    }

    #[test]
    fn incomplete_groups_are_refused() {
        for group_size in [0, 4] {
            let error = have_spread(&[0.0; 6], group_size).unwrap_err();
            assert!(matches!(error, RlhfError::Groups { sequences: 6, .. }));
        }
    }

    #[test]
    fn a_full_batch_has_spread_and_a_short_one_is_filled() {
        assert_eq!(choose(&[true, false, true, true, true], 3), [0, 2, 3]);
        assert_eq!(choose(&[true, false, false, true], 3), [0, 1, 3]);
        assert_eq!(choose(&[false; 4], 2), [0, 1]);
        assert_eq!(choose(&[true, false], 3), [0, 1]);
        assert!(choose(&[], 3).is_empty());
    }
}
