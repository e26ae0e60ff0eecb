//! Filters against transformers', and draws against the distribution that they are made from.

use kernels::host::row;
use kernels::random::Key;
use rollout::sampling::{RowFault, inverse, kept_set};
use rollout::{Decoding, Draw, Drawn, Sampling, SequenceId, draw_row};
use serde_json::Value;

use crate::model::normal_row;

fn draw(decoding: Decoding, forbidden: &[u32], uniform: f64) -> Draw<'_> {
    Draw {
        row: 0,
        sequence: SequenceId {
            request: 3,
            sample: 1,
        },
        position: 5,
        decoding,
        forbidden,
        uniform,
        entropy: true,
    }
}

fn sampled(logits: &[f32], sampling: Sampling, uniform: f64) -> Drawn {
    draw_row(logits, &draw(Decoding::Sample(sampling), &[], uniform)).unwrap()
}

/// The filtered distribution over the whole vocabulary.
fn probabilities(logits: &[f32], sampling: &Sampling, forbidden: &[u32]) -> Vec<f64> {
    let all = || (0..logits.len() as u32).collect();
    let kept: Vec<u32> = kept_set(logits, sampling, forbidden).unwrap_or_else(all);
    let inv_temperature = inverse(sampling.temperature);
    let stats = row::stats(&row::gather(logits, &kept), inv_temperature);
    let mut p = vec![0.0; logits.len()];
    for id in kept {
        p[id as usize] = f64::from(row::log_prob(logits, inv_temperature, &stats, id)).exp();
    }
    p
}

#[test]
fn filters_leave_what_transformers_leaves() {
    let golden: Value = serde_json::from_str(include_str!("../golden/sampling.json")).unwrap();
    let numbers = |value: &Value| -> Vec<f64> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap())
            .collect()
    };
    for case in golden["cases"].as_array().unwrap() {
        let setting = |name: &str| case[name].as_f64().unwrap();
        let sampling = Sampling {
            temperature: setting("temperature") as f32,
            top_k: setting("top_k") as usize,
            top_p: setting("top_p") as f32,
            min_p: setting("min_p") as f32,
        };
        for (index, logits) in golden["logits"].as_array().unwrap().iter().enumerate() {
            let logits: Vec<f32> = numbers(logits).into_iter().map(|x| x as f32).collect();
            let found = probabilities(&logits, &sampling, &[]);
            for (token, (found, expected)) in found
                .iter()
                .zip(numbers(&case["probabilities"][index]))
                .enumerate()
            {
                // Both are `f32` softmaxes.
                let same = (found - expected).abs() < 1e-6 && (*found == 0.0) == (expected == 0.0);
                assert!(
                    same,
                    "{sampling:?}, row {index}, token {token}: {found}, expected {expected}"
                );
            }
        }
    }
}

/// The definition of each filter, by sorting everything in double precision.
fn slow_kept_set(logits: &[f32], sampling: &Sampling) -> Vec<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let logit = |id: u32| logits[id as usize];
    order.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
    if sampling.top_k > 0 && sampling.top_k < order.len() {
        let least = logit(order[sampling.top_k - 1]);
        order.retain(|&id| logit(id) >= least);
    }
    let best = f64::from(logit(order[0]));
    let weight = |id: u32| ((f64::from(logit(id)) - best) / f64::from(sampling.temperature)).exp();
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    if sampling.top_p < 1.0 {
        let mut above = 0.0;
        order.retain(|&id| {
            let inside = above < f64::from(sampling.top_p) * total;
            above += weight(id);
            inside
        });
    }
    order.retain(|&id| weight(id) >= f64::from(sampling.min_p));
    order.sort_unstable();
    order
}

#[test]
fn selection_agrees_with_sorting() {
    for (seed, (top_k, top_p, min_p)) in [
        (0, 0.9, 0.0),
        (0, 0.3, 0.0),
        (0, 0.999, 0.0),
        (0, 0.95, 0.05),
        (0, 1.0, 0.02),
        (1, 1.0, 0.0),
        (50, 1.0, 0.0),
        (3000, 1.0, 0.0),
        (700, 0.8, 0.01),
        (0, 1e-6, 0.0),
        (0, 1.0, 1.0),
    ]
    .into_iter()
    .enumerate()
    {
        for (scale, temperature) in [(0.1, 1.0), (2.0, 0.7), (5.0, 1.5)] {
            let logits = normal_row(seed as u64, 5000, scale);
            let sampling = Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
            };
            let all = || (0..5000).collect::<Vec<u32>>();
            let found = kept_set(&logits, &sampling, &[]).unwrap_or_else(all);
            assert_eq!(
                found,
                slow_kept_set(&logits, &sampling),
                "{sampling:?}, scale {scale}"
            );
        }
    }
}

#[test]
fn ties_of_the_last_of_top_k_are_kept() {
    let logits = [1.0, 3.0, 2.0, 2.0, 0.0, 2.0];
    let sampling = Sampling {
        top_k: 2,
        ..Sampling::default()
    };
    assert_eq!(kept_set(&logits, &sampling, &[]), Some(vec![1, 2, 3, 5]));
    let sampling = Sampling {
        top_k: 6,
        ..Sampling::default()
    };
    assert_eq!(kept_set(&logits, &sampling, &[]), None);
    let all_but_one = Sampling {
        top_k: 2,
        ..Sampling::default()
    };
    assert_eq!(
        kept_set(&[1.0, 3.0, 2.0], &all_but_one, &[]),
        Some(vec![1, 2])
    );
}

/// By hand: two of four equal tokens reach one half, and among equals the lower ids come first.
#[test]
fn top_p_stops_where_its_sum_is_reached() {
    let half = Sampling {
        top_p: 0.5,
        ..Sampling::default()
    };
    assert_eq!(kept_set(&[0.0; 4], &half, &[]), Some(vec![0, 1]));
}

/// transformers removes what is below `min_p` times the best probability, and so keeps an equal.
#[test]
fn min_p_keeps_a_token_at_its_bound() {
    for tenths in 1..=80u8 {
        let logit = -0.1 * f32::from(tenths);
        let sampling = Sampling {
            min_p: row::exp(logit),
            ..Sampling::default()
        };
        let found = kept_set(&[0.0, logit, logit - 1.0], &sampling, &[]);
        assert_eq!(found, Some(vec![0, 1]), "{logit}");
    }
}

#[test]
fn forbidden_tokens_go_first() {
    let logits = [1.0, 3.0, 2.0, 0.0];
    let top_1 = Sampling {
        top_k: 1,
        ..Sampling::default()
    };
    assert_eq!(kept_set(&logits, &top_1, &[1]), Some(vec![2]));
    assert_eq!(
        kept_set(&logits, &Sampling::default(), &[1, 99]),
        Some(vec![0, 2, 3])
    );
    for step in 0..100 {
        let decoding = Decoding::Sample(Sampling::default());
        let drawn = draw_row(&logits, &draw(decoding, &[1], f64::from(step) / 100.0)).unwrap();
        assert_ne!(drawn.token, 1);
    }
}

#[test]
fn draws_follow_the_distribution() {
    let key = Key::new(11, 4u64);
    let plain = Sampling::default();
    let cut = Sampling {
        temperature: 0.8,
        top_k: 300,
        top_p: 0.95,
        min_p: 0.01,
    };
    for (stream, sampling) in [plain, cut].into_iter().enumerate() {
        let logits = normal_row(9, 600, 2.0);
        let p = probabilities(&logits, &sampling, &[]);
        let mut counts = vec![0.0; p.len()];
        let n = 20_000;
        for index in 0..n {
            let drawn = sampled(&logits, sampling, key.uniform(stream as u64, index));
            counts[drawn.token as usize] += 1.0;
        }
        assert!(
            p.iter()
                .zip(&counts)
                .all(|(&p, &count)| p > 0.0 || count == 0.0)
        );
        // Pearson's statistic over the tokens that are expected five times or more: mean d,
        // standard deviation √(2d).
        let cells: Vec<f64> = p
            .iter()
            .zip(&counts)
            .filter(|(p, _)| **p * n as f64 >= 5.0)
            .map(|(&p, &count)| (count - p * n as f64).powi(2) / (p * n as f64))
            .collect();
        let (chi2, d) = (cells.iter().sum::<f64>(), cells.len() as f64);
        assert!(
            d > 20.0 && (chi2 - d).abs() < 4.0 * (2.0 * d).sqrt(),
            "{chi2} for {d} cells"
        );
    }
}

#[test]
fn a_draw_inverts_the_cumulative_distribution() {
    // 700 tokens: three blocks, the last one partly filled.
    let logits = normal_row(6, 700, 1.0);
    let p = probabilities(&logits, &Sampling::default(), &[]);
    let mut below = 0.0;
    for (token, p) in p.into_iter().enumerate() {
        // Not too close to the borders, whose positions in `f32` are known to 1e-7.
        for share in [0.02, 0.5, 0.98] {
            let drawn = sampled(&logits, Sampling::default(), below + share * p);
            assert_eq!(drawn.token, token as u32, "at {share}");
        }
        below += p;
    }
}

#[test]
fn the_ends_of_the_unit_interval_give_possible_tokens() {
    let mut logits = vec![f32::NEG_INFINITY; 1000];
    logits[300] = 0.5;
    logits[610] = 0.5;
    let last = 1.0 - f64::EPSILON / 2.0;
    assert_eq!(sampled(&logits, Sampling::default(), 0.0).token, 300);
    assert_eq!(sampled(&logits, Sampling::default(), last).token, 610);
}

#[test]
fn log_probs_are_those_of_the_row_kernel() {
    let logits = normal_row(8, 500, 2.0);
    let plain = Sampling {
        temperature: 0.7,
        ..Sampling::default()
    };
    let drawn = sampled(&logits, plain, 0.4);
    let stats = row::stats(&logits, inverse(0.7));
    assert_eq!(drawn.kept, None);
    assert_eq!(
        drawn.log_prob,
        row::log_prob(&logits, inverse(0.7), &stats, drawn.token)
    );

    let drawn = sampled(
        &logits,
        Sampling {
            top_p: 0.5,
            ..plain
        },
        0.4,
    );
    let kept = drawn.kept.unwrap();
    assert!(kept.contains(&drawn.token) && kept.is_sorted());
    let stats = row::stats(&row::gather(&logits, &kept), inverse(0.7));
    assert_eq!(
        drawn.log_prob,
        row::log_prob(&logits, inverse(0.7), &stats, drawn.token)
    );
}

/// The log-prob over the whole vocabulary is that of the row, bit for bit.
#[test]
fn a_draw_records_its_log_prob_over_the_whole_vocabulary() {
    let logits = normal_row(9, 500, 2.0);
    let plain = Sampling {
        temperature: 0.7,
        ..Sampling::default()
    };
    let (stats, t) = (row::stats(&logits, inverse(0.7)), inverse(0.7));
    let cuts = [
        plain,
        Sampling { top_k: 3, ..plain },
        Sampling {
            top_p: 0.5,
            ..plain
        },
        Sampling {
            min_p: 0.2,
            ..plain
        },
    ];
    for sampling in cuts {
        for forbidden in [&[][..], &[7, 8, 499]] {
            let request = draw(Decoding::Sample(sampling), forbidden, 0.4);
            let drawn = draw_row(&logits, &request).unwrap();
            let whole = row::log_prob(&logits, t, &stats, drawn.token);
            assert_eq!(drawn.whole_log_prob, whole, "{sampling:?} {forbidden:?}");
            assert_eq!(drawn.kept.is_some(), drawn.log_prob > whole, "{sampling:?}");
        }
    }
}

#[test]
fn greedy_takes_the_first_best_and_records_the_whole_distribution() {
    let logits = [1.0, 4.0, 4.0, 2.0];
    let whole = row::stats(&logits, 1.0);
    for (forbidden, token) in [(&[][..], 1), (&[1][..], 2), (&[1, 2][..], 3)] {
        let drawn = draw_row(&logits, &draw(Decoding::Greedy, forbidden, 0.9)).unwrap();
        let log_prob = row::log_prob(&logits, 1.0, &whole, token);
        let entropy = Some(row::entropy(&logits, 1.0, &whole));
        assert_eq!(
            drawn,
            Drawn {
                token,
                log_prob,
                whole_log_prob: log_prob,
                entropy,
                kept: None
            }
        );
    }
}

#[test]
fn a_row_without_a_distribution_is_an_error_that_names_it() {
    let sample = Decoding::Sample(Sampling::default());
    let top_p = Decoding::Sample(Sampling {
        top_p: 0.9,
        ..Sampling::default()
    });
    for decoding in [Decoding::Greedy, sample, top_p] {
        let mut logits = vec![0.0; 20];
        logits[13] = f32::NAN;
        let error = draw_row(&logits, &draw(decoding, &[], 0.5)).unwrap_err();
        assert!(matches!(
            error.fault,
            RowFault::NotANumber { token: 13, .. }
        ));
        let text = error.to_string();
        assert!(
            text.contains("request 3, sample 1, new token 5 hold NaN for token 13"),
            "{text}"
        );

        for (logits, forbidden) in [
            (&[f32::NEG_INFINITY; 20][..], &[][..]),
            (&[0.0, 1.0], &[0, 1]),
            (&[], &[]),
        ] {
            let error = draw_row(logits, &draw(decoding, forbidden, 0.5)).unwrap_err();
            assert_eq!(error.fault, RowFault::Empty, "{decoding:?}");
        }
    }
}

/// The recorded entropy is that of the kept set, and there is none unless it is requested.
#[test]
fn a_draw_records_the_entropy_of_its_own_distribution() {
    let logits = normal_row(5, 300, 2.0);
    for top_k in [0, 20] {
        let sampling = Sampling {
            temperature: 0.7,
            top_k,
            ..Sampling::default()
        };
        let drawn = sampled(&logits, sampling, 0.3);
        let scores = match &drawn.kept {
            Some(kept) => kept.iter().map(|&id| logits[id as usize]).collect(),
            None => logits.clone(),
        };
        assert_eq!(scores.len(), if top_k == 0 { 300 } else { top_k });
        let weights: Vec<f64> = scores.iter().map(|&x| f64::from(x / 0.7).exp()).collect();
        let total: f64 = weights.iter().sum();
        let share = |w: &f64| w / total * (total / w).ln();
        let entropy: f64 = weights.iter().map(share).sum();
        let recorded = f64::from(drawn.entropy.expect("an entropy"));
        assert!((recorded - entropy).abs() < 1e-5, "{recorded} {entropy}");
    }
    let unasked = Draw {
        entropy: false,
        ..draw(Decoding::Greedy, &[], 0.3)
    };
    assert_eq!(draw_row(&logits, &unasked).unwrap().entropy, None);
}
