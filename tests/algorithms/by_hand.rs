//! Values that follow by hand from the definitions, where the golden numbers leave a term unseen:
//! merged statistics, guards of extreme values, and arguments that must be refused.

use candle_core::{Device, Var};
use collimate::rlhf::advantage::remax::remax;
use collimate::rlhf::ensemble::Combine;
use collimate::rlhf::preference::{
    DirectPreferenceConfig, DpoLossType, PreferenceStats, bradley_terry, direct_preference,
};
use collimate::rlhf::score::clip_scores;
use collimate::rlhf::{
    AdaptiveKl, KlEstimator, LossAggregation, PolicyLossConfig, PolicyStats, RaggedRows,
    RatioStats, RunningMoments, Totals, ValueLossConfig, ValueStats, policy_loss, value_loss,
};

fn var(values: &[f64]) -> Var {
    Var::new(values, &Device::Cpu).unwrap()
}

#[test]
fn a_sequence_quantity_needs_one_value_per_sequence() {
    let rows = RaggedRows::new(&[0, 2, 5]).unwrap();
    for values in [&[1.0][..], &[1.0, 2.0, 3.0]] {
        let error = rows.spread("scores", values).unwrap_err();
        assert!(error.to_string().starts_with("scores has"), "{error}");
    }
}

#[test]
fn infinity_and_nan_are_no_settings() {
    for broken in [f64::INFINITY, f64::NAN] {
        assert!(clip_scores(&[1.0], broken).is_err());
        assert!(AdaptiveKl::new(broken, 6.0, 1e4).is_err());
        assert!(AdaptiveKl::new(0.1, broken, 1e4).is_err());
        assert!(AdaptiveKl::new(0.1, 6.0, broken).is_err());
    }
}

#[test]
fn a_mean_over_nothing_is_refused() {
    let rows = RaggedRows::new(&[0, 2]).unwrap();
    let weights = |aggregation: LossAggregation, tokens, sequences, longest| {
        let totals = Totals {
            tokens,
            sequences,
            longest,
        };
        aggregation.weights(rows, totals)
    };
    for aggregation in [LossAggregation::Token, LossAggregation::Sequence] {
        assert!(weights(aggregation, 0, 1, 2).is_err());
        assert!(weights(aggregation, 2, 0, 2).is_err());
    }
    assert!(weights(LossAggregation::Constant, 2, 1, 0).is_err());
}

#[test]
fn the_minimum_of_an_ensemble_does_not_hide_a_nan() {
    for scores in [
        [1.0, f64::NAN, 0.5],
        [f64::NAN, 1.0, 0.5],
        [1.0, 0.5, f64::NAN],
    ] {
        assert!(Combine::Minimum.of(&scores, 0.0).is_nan());
    }
}

/// Beyond the guard at −d = 80, k3 grows by e⁸⁰ − 1 for each unit of −d.
#[test]
fn k3_goes_on_along_its_tangent_beyond_the_guard() {
    let k3 = |d: f64| KlEstimator::K3.estimate(d);
    let slope = (k3(-95.0) - k3(-85.0)) / 10.0;
    let tangent = 80f64.exp_m1();
    assert!((slope - tangent).abs() < 1e-12 * tangent, "{slope}");
    let beyond = k3(-81.0) - k3(-80.0);
    assert!((beyond - tangent).abs() < 1e-12 * tangent, "{beyond}");
}

/// Log-ratios ln 2, ln ½ and 0: ratios 2, ½ and 1; squares (ln 2)² twice.
#[test]
fn ratios_are_new_over_old_and_merge() {
    let two = 2f64.ln();
    let whole = RatioStats::between(&[-1.0, -1.0 - two, -1.0], &[-1.0 - two, -1.0, -1.0]).unwrap();
    assert!((whole.ratio_mean() - 3.5 / 3.0).abs() < 1e-15);
    assert!((whole.ratio_max_dev - 1.0).abs() < 1e-15);
    assert!((whole.approx_kl() - two * two / 3.0).abs() < 1e-15);
    let fallen = RatioStats::between(&[-1.0 - two], &[-1.0]).unwrap();
    assert!((fallen.ratio_max_dev - 0.5).abs() < 1e-15);
    let mut merged = fallen;
    merged.merge(&RatioStats::between(&[-1.0, -1.0], &[-1.0 - two, -1.0]).unwrap());
    assert_eq!(merged.tokens, 3);
    assert!((merged.ratio_mean() - whole.ratio_mean()).abs() < 1e-15);
    assert!((merged.ratio_max_dev - whole.ratio_max_dev).abs() < 1e-15);
    assert!((merged.approx_kl() - whole.approx_kl()).abs() < 1e-15);
}

/// Ratios e² (clipped: a good token), e² (dual-clipped: a bad token) and 1.
#[test]
fn statistics_of_the_policy_loss_add_up_over_passes() {
    let config = PolicyLossConfig {
        dual_clip: Some(3.0),
        ..PolicyLossConfig::symmetric(0.2)
    };
    let of = |new: &[f64], advantages: &[f64]| {
        let (old, weights) = (vec![-3.0; new.len()], vec![1.0; new.len()]);
        let found = policy_loss(&var(new), &old, advantages, &weights, &config).unwrap();
        found.stats
    };
    let mut merged = PolicyStats::default();
    for (new, advantage) in [(-1.0, 1.0), (-1.0, -1.0), (-3.0, 1.0)] {
        merged.merge(&of(&[new], &[advantage]));
    }
    assert_eq!(merged, of(&[-1.0, -1.0, -3.0], &[1.0, -1.0, 1.0]));
    assert_eq!(merged.clip_fraction(), 1.0 / 3.0);
    assert_eq!(merged.dual_clip_fraction(), 1.0 / 3.0);
    assert!((merged.ratio.ratio_mean() - (2.0 * 2f64.exp() + 1.0) / 3.0).abs() < 1e-12);
}

#[test]
fn impossible_clips_are_refused() {
    let x = var(&[-1.0]);
    let policy = |low, high, dual_clip| {
        let config = PolicyLossConfig {
            cliprange_low: low,
            cliprange_high: high,
            dual_clip,
        };
        policy_loss(&x, &[-1.0], &[1.0], &[1.0], &config).map(|found| found.value)
    };
    assert!(policy(0.2, 0.3, Some(1.5)).is_ok());
    assert!(policy(-0.1, 0.3, None).is_err());
    assert!(policy(0.2, -0.1, None).is_err());
    assert!(policy(0.2, 0.3, Some(f64::NAN)).is_err());
    let value = |limit| {
        let config = ValueLossConfig {
            cliprange_value: Some(limit),
        };
        value_loss(&x, &[0.0], &[0.0], &[1.0], &config).map(|found| found.value)
    };
    assert!(value(0.2).is_ok() && value(-0.2).is_err());
}

/// 0.24 + (0.11 − 0.24) is 0.10999999999999999, further from the return than 0.11: within the range
/// such rounding is no clip, and the whole gradient stays.
#[test]
fn rounding_within_the_range_is_no_clip_of_a_value() {
    let (x, config) = (
        var(&[0.11]),
        ValueLossConfig {
            cliprange_value: Some(0.2),
        },
    );
    let found = value_loss(&x, &[0.24], &[2.0], &[1.0], &config).unwrap();
    assert_eq!(found.stats.clipped, 0);
    let gradients = found.loss.backward().unwrap();
    let gradient = gradients.get(&x).unwrap().to_vec1::<f64>().unwrap();
    assert_eq!(gradient, [0.11 - 2.0]);
}

/// Of three values one has moved from 0 beyond ±0.2 towards its return.
#[test]
fn statistics_of_the_value_loss_add_up_over_passes() {
    let config = ValueLossConfig {
        cliprange_value: Some(0.2),
    };
    let mut merged = ValueStats::default();
    for new in [1.0, 0.1, -0.1] {
        let found = value_loss(&var(&[new]), &[0.0], &[2.0], &[1.0], &config).unwrap();
        merged.merge(&found.stats);
    }
    assert_eq!((merged.tokens, merged.clipped), (3, 1));
    assert_eq!(merged.clip_fraction(), 1.0 / 3.0);
}

#[test]
fn the_running_scale_begins_at_mean_and_deviation_zero() {
    let moments = RunningMoments::default();
    assert_eq!((moments.mean(), moments.std()), (0.0, 0.0));
}

#[test]
fn prompts_without_samples_are_refused() {
    assert!(remax::<f64, f64>(&[], &[], 0).is_err());
    assert!(remax(&[1.0, 2.0], &[0.5], 0).is_err());
}

/// Chosen above, below and above rejected.
#[test]
fn statistics_of_pairs_add_up_over_passes() {
    let of = |chosen: &[f64], rejected: &[f64]| {
        let (chosen, rejected) = (var(chosen), var(rejected));
        let found = bradley_terry(&chosen, &rejected, None, 0.0, 3).unwrap();
        found.stats
    };
    let mut merged = PreferenceStats::default();
    merged.merge(&of(&[2.0], &[0.5]));
    merged.merge(&of(&[-1.0, 1.0], &[1.0, 0.0]));
    assert_eq!(merged, of(&[2.0, -1.0, 1.0], &[0.5, 1.0, 0.0]));
    assert_eq!((merged.pairs, merged.correct), (3, 2));
    assert_eq!((merged.chosen_sum, merged.rejected_sum), (2.0, 1.5));
    assert_eq!(merged.accuracy(), 2.0 / 3.0);
}

/// Scores 2 and 1 with a coefficient of ½: −log σ(1) + ½ · 3².
#[test]
fn the_loss_of_a_reward_model_is_ranking_plus_centring() {
    let found = bradley_terry(&var(&[2.0]), &var(&[1.0]), None, 0.5, 1).unwrap();
    let expected = (-1f64).exp().ln_1p() + 4.5;
    let loss = found.loss.to_scalar::<f64>().unwrap();
    assert!((loss - expected).abs() < 1e-15, "{loss}");
}

#[test]
fn impossible_settings_of_preference_losses_are_refused() {
    let (chosen, rejected) = (var(&[1.0]), var(&[0.0]));
    assert!(bradley_terry(&chosen, &rejected, None, -0.1, 1).is_err());
    let rows = RaggedRows::new(&[0, 1, 2]).unwrap();
    let simpo = |beta, simpo_gamma| {
        let config = DirectPreferenceConfig {
            loss_type: DpoLossType::Simpo,
            beta,
            label_smoothing: 0.0,
            simpo_gamma,
        };
        direct_preference(&var(&[-1.0, -2.0]), rows, &[], &config, 1).map(|found| found.value)
    };
    assert!(simpo(2.0, 0.5).is_ok());
    assert!(simpo(2.0, -0.5).is_err());
    assert!(simpo(0.0, 0.5).is_err());
}
