//! The row kernel against double precision, and the identities that exactness depends on.

use kernels::host::row;
use kernels::random::Key;
use kernels::random::rand::Rng;
use kernels::random::rand_distr::StandardNormal;

/// A row of normal logits with standard deviation `scale`.
fn normal_row(seed: u64, len: usize, scale: f64) -> Vec<f32> {
    let draws = Key::new(seed, 1u64).stream(0, 0);
    let draws = draws.sample_iter::<f64, _>(StandardNormal).take(len);
    draws.map(|x| (x * scale) as f32).collect()
}

#[test]
fn exp_is_within_two_ulp() {
    let mut worst = 0.0f64;
    for step in -870_000..=880_000 {
        let x = step as f32 * 1e-4;
        let exact = f64::from(x).exp();
        let ulp = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
        worst = worst.max((f64::from(row::exp(x)) - exact).abs() / ulp);
    }
    assert!(worst <= 2.0, "{worst} ulp");
}

#[test]
fn exp_at_the_edges() {
    assert_eq!(row::exp(0.0), 1.0);
    assert_eq!(row::exp(-0.0), 1.0);
    assert_eq!(row::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(row::exp(-87.34), 0.0);
    assert_eq!(row::exp(f32::MIN), 0.0);
    assert_eq!(row::exp(f32::INFINITY), f32::INFINITY);
    assert_eq!(row::exp(88.73), f32::INFINITY);
    assert_eq!(row::exp(f32::MAX), f32::INFINITY);
    assert!(row::exp(88.722).is_finite() && row::exp(88.722) > 3.3e38);
    for bits in [0x7fc0_0000, 0x7f80_0001, 0x7fc0_01ff, 0xffff_ffff] {
        assert!(row::exp(f32::from_bits(bits)).is_nan(), "{bits:x}");
    }
}

#[test]
fn statistics_agree_with_double_precision() {
    // Lengths around the lane and block sizes, and a realistic vocabulary.
    for (len, inv_temperature) in [
        (1, 1.0),
        (15, 0.5),
        (16, 1.0),
        (257, 1.3),
        (1000, 1.0),
        (50_257, 0.7),
    ] {
        let logits = normal_row(len as u64, len, 3.0);
        let z: Vec<f64> = logits
            .iter()
            .map(|&x| f64::from(x) * f64::from(inv_temperature))
            .collect();
        let max = z.iter().copied().fold(f64::MIN, f64::max);
        let lse = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        let entropy = -z.iter().map(|z| (z - lse).exp() * (z - lse)).sum::<f64>();

        let stats = row::stats(&logits, inv_temperature);
        assert!(stats.is_finite());
        close(stats.log_sum_exp(), lse);
        close(row::entropy(&logits, inv_temperature, &stats), entropy);
        let last = len as u32 - 1;
        close(
            row::log_prob(&logits, inv_temperature, &stats, last),
            z[len - 1] - lse,
        );
        let mut p = vec![0.0; len];
        row::softmax(&logits, inv_temperature, &stats, &mut p);
        close(p[0], (z[0] - lse).exp());
        close(p.iter().map(|&p| f64::from(p)).sum::<f64>() as f32, 1.0);
    }
}

#[test]
fn block_sums_add_up_to_the_sum() {
    let logits = normal_row(3, 1000, 2.0);
    let stats = row::stats(&logits, 0.9);
    let mut sums = [0.0; 4];
    row::block_sums(&logits, 0.9, stats.max, &mut sums);
    let total: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
    assert_eq!(total as f32, stats.sum);
}

#[test]
fn impossible_tokens_change_nothing_but_their_own_probability() {
    let logits = normal_row(4, 300, 2.0);
    let mut masked = logits.clone();
    masked[7] = f32::NEG_INFINITY;
    let kept: Vec<u32> = (0..300).filter(|&id| id != 7).collect();
    let (all, some) = (row::gather(&logits, &kept), row::stats(&masked, 1.0));
    let few = row::stats(&all, 1.0);
    close(some.sum, f64::from(few.sum));
    close(
        row::entropy(&masked, 1.0, &some),
        f64::from(row::entropy(&all, 1.0, &few)),
    );
    assert_eq!(row::log_prob(&masked, 1.0, &some, 7), f32::NEG_INFINITY);
}

#[test]
fn a_row_that_is_no_distribution_is_not_finite() {
    let finite = normal_row(5, 40, 1.0);
    for (place, bad) in [(0, f32::NAN), (39, f32::NAN), (17, f32::INFINITY)] {
        let mut logits = finite.clone();
        logits[place] = bad;
        assert!(!row::stats(&logits, 1.0).is_finite(), "{bad} at {place}");
    }
    assert!(!row::stats(&[f32::NEG_INFINITY; 40], 1.0).is_finite());
    assert!(!row::stats(&[], 1.0).is_finite());
}

/// A tolerance of five digits: `f32` sums in blocks lose about 1e-6.
fn close(found: f32, expected: f64) {
    let tolerance = 2e-6 * (1.0 + expected.abs());
    assert!(
        (f64::from(found) - expected).abs() < tolerance,
        "found {found}, expected {expected}"
    );
}

/// Every subset of ten ids: each gathered value belongs to its id, and the runs are complete and in
/// order.
#[test]
fn kept_sets_are_gathered_by_runs_of_neighbours() {
    let logits: Vec<f32> = (0..10u8).map(f32::from).collect();
    for subset in 0..1u32 << 10 {
        let kept: Vec<u32> = (0..10).filter(|id| subset >> id & 1 == 1).collect();
        let expected: Vec<f32> = kept.iter().map(|&id| id as f32).collect();
        assert_eq!(row::gather(&logits, &kept), expected);
        let runs: Vec<_> = row::runs(&kept).collect();
        let ids = runs
            .iter()
            .flat_map(|(ids, _)| ids.clone().map(|id| id as u32));
        assert_eq!(ids.collect::<Vec<_>>(), kept);
        let within = runs.iter().flat_map(|(_, within)| within.clone());
        assert!(within.eq(0..kept.len()));
        let apart = |pair: &[(std::ops::Range<usize>, _)]| pair[0].0.end < pair[1].0.start;
        assert!(runs.windows(2).all(apart), "{kept:?}");
    }
}
