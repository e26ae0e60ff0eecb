//! Measures of completions and of scores, as pure functions.

use std::collections::HashSet;

/// distinct-2: the share of different pairs among all pairs of neighbouring words in the
/// completions (Li et al. 2016, §5.1).
pub fn distinct_2<'t>(completions: impl Iterator<Item = &'t str>) -> f64 {
    let words: Vec<Vec<&str>> = completions
        .map(|text| text.split_whitespace().collect())
        .collect();
    let pairs: Vec<&[&str]> = words.iter().flat_map(|words| words.windows(2)).collect();
    let distinct: HashSet<_> = pairs.iter().collect();
    distinct.len() as f64 / pairs.len().max(1) as f64
}

/// Share of prompts on which two scores changed in opposite directions; `None` without prompts.
pub fn opposed(ours: &[f32], theirs: &[f32]) -> Option<f64> {
    let count = ours.len().min(theirs.len());
    let against = |(a, b): &(&f32, &f32)| (**a > 0.0 && **b < 0.0) || (**a < 0.0 && **b > 0.0);
    let opposed = ours.iter().zip(theirs).filter(against).count();
    (count > 0).then(|| opposed as f64 / count as f64)
}

/// Spearman's rank correlation, ties sharing their mean rank; `None` if either list does not vary
/// or contains NaN.
pub fn rank_correlation(a: &[f32], b: &[f32]) -> Option<f64> {
    let numbers = |values: &[f32]| values.iter().all(|value| !value.is_nan());
    if a.len() != b.len() || !numbers(a) || !numbers(b) {
        return None;
    }
    let (a, b) = (centred_ranks(a), centred_ranks(b));
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let scale = (product(&a, &a) * product(&b, &b)).sqrt();
    (scale > 0.0).then(|| product(&a, &b) / scale)
}

/// The rank of each value, minus the mean rank.
fn centred_ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let middle = (values.len() as f64 - 1.0) / 2.0;
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tied in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let rank = start as f64 + (tied.len() as f64 - 1.0) / 2.0;
        tied.iter().for_each(|&i| ranks[i] = rank - middle);
        start += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_words() {
        // a b, b a, a b; b a: two different ones of four.
        assert_eq!(distinct_2(["a b a b", "b  a", "c"].into_iter()), 0.5);
        assert_eq!(distinct_2(["a", ""].into_iter()), 0.0);
    }

    #[test]
    fn changes_in_opposite_directions() {
        let (ours, theirs) = ([1.0, 1.0, -1.0, 0.0], [2.0, -2.0, 0.5, -1.0]);
        assert_eq!(opposed(&ours, &theirs), Some(0.5));
        assert_eq!(opposed(&[f32::NAN, 1.0], &[1.0, 1.0]), Some(0.0));
        assert_eq!(opposed(&ours, &[]), None);
    }

    #[test]
    fn ranks_agree_by_hand_and_by_numpy() {
        let close = |a: &[f32], b: &[f32], expected: f64| {
            let found = rank_correlation(a, b).unwrap();
            assert!((found - expected).abs() < 1e-12, "{found}");
        };
        close(&[1.0, 2.0, 3.0], &[10.0, 100.0, 1000.0], 1.0);
        close(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0], -1.0);
        // numpy.corrcoef of the ranks, with ties on both sides.
        let (a, b) = ([0.5, 0.5, 2.0, -1.0, 3.0], [1.0, 4.0, 4.0, 0.0, 2.0]);
        close(&a, &b, 0.552_631_578_947_368_4);
        assert_eq!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(rank_correlation(&[1.0, f32::NAN], &[1.0, 2.0]), None);
        assert_eq!(rank_correlation(&[1.0], &[]), None);
        assert_eq!(rank_correlation(&[], &[]), None);
    }
}
