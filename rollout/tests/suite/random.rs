//! The random words against published test vectors, and the draws against their distributions.

use rollout::random::{Independent, Key, Purpose, philox4x32};

/// Known answers of philox4x32 with 10 rounds, from the Random123 distribution (Salmon et al.
/// 2011).
#[test]
fn philox_gives_the_published_words() {
    let cases = [
        (
            [0; 4],
            [0; 2],
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
        ),
        (
            [u32::MAX; 4],
            [u32::MAX; 2],
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        ),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(philox4x32(counter, key), expected);
    }
}

#[test]
fn every_part_of_the_address_matters() {
    let base = Key::new(7, Purpose::Sample).bits(1, 2);
    let others = [
        Key::new(8, Purpose::Sample).bits(1, 2),
        Key::new(7 | 1 << 40, Purpose::Sample).bits(1, 2),
        Key::new(7, Purpose::Init).bits(1, 2),
        Key::new(7, Purpose::Sample).bits(2, 1),
        Key::new(7, Purpose::Sample).bits(1 | 1 << 40, 2),
        Key::new(7, Purpose::Sample).bits(1, 2 | 1 << 40),
        Key::new(7, Purpose::Sample).child(0, 0).bits(1, 2),
    ];
    assert!(others.iter().all(|&other| other != base), "{others:x?}");
    assert_eq!(base, Key::new(7, Purpose::Sample).bits(1, 2));
}

#[test]
fn uniform_draws_have_the_moments_of_the_unit_interval() {
    let key = Key::new(1, Purpose::Sample);
    let draws: Vec<f64> = (0..20_000).map(|b| key.uniform(3, b)).collect();
    assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
    // Standard errors: 0.002 for the mean, 0.0006 for the variance.
    assert!((mean(&draws) - 0.5).abs() < 0.008);
    assert!((variance(&draws) - 1.0 / 12.0).abs() < 0.0025);
}

#[test]
fn normal_draws_have_the_moments_of_the_standard_normal() {
    let mut draws = vec![0.0; 20_001];
    Key::new(1, Purpose::Init).fill_normal(5, &mut draws);
    // Standard errors: 0.007 for the mean, 0.01 for the variance, 0.035 for the fourth moment.
    assert!(mean(&draws).abs() < 0.028);
    assert!((variance(&draws) - 1.0).abs() < 0.04);
    let fourth = mean(&draws.iter().map(|x| x.powi(4)).collect::<Vec<_>>());
    assert!((fourth - 3.0).abs() < 0.28, "{fourth}");
    let products: Vec<f64> = draws
        .chunks_exact(2)
        .map(|pair| pair[0] * pair[1])
        .collect();
    assert!(mean(&products).abs() < 0.04);
}

#[test]
fn a_permutation_holds_each_number_once_and_favours_no_place() {
    let key = Key::new(2, Purpose::Shuffle);
    let mut counts = [[0u32; 4]; 4];
    for epoch in 0..4000 {
        let order = key.permutation(epoch, 4);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3]);
        for (place, item) in order.into_iter().enumerate() {
            counts[place][item] += 1;
        }
    }
    // Expected 1000, standard deviation 27.
    assert!(
        counts.iter().flatten().all(|&n| n.abs_diff(1000) < 110),
        "{counts:?}"
    );
    assert_eq!(key.permutation(0, 100), key.permutation(0, 100));
    assert_ne!(key.permutation(0, 100), key.permutation(1, 100));
    assert!(key.permutation(0, 0).is_empty());
}

/// The seeds are part of the format: another value changes every judge and every drawn critic.
#[test]
fn independent_models_have_seeds_of_their_own() {
    let seeds = [Independent::Judge, Independent::Critic].map(|model| model.seed(1));
    assert_ne!(seeds[0], seeds[1]);
    assert!(!seeds.contains(&1));
    assert_ne!(Independent::Judge.seed(2), seeds[0]);
    let order = |seed| Key::new(seed, Purpose::Shuffle).permutation(0, 100);
    let agree = |a: &[usize], b: &[usize]| a.iter().zip(b).filter(|(a, b)| a == b).count();
    let orders = [1, seeds[0], seeds[1]].map(order);
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        // Orders agree in one place of a hundred by chance, in ten with a probability of 1e-7.
        assert!(agree(&orders[a], &orders[b]) < 10, "{orders:?}");
    }
}

fn mean(xs: &[f64]) -> f64 {
    xs.iter().sum::<f64>() / xs.len() as f64
}

fn variance(xs: &[f64]) -> f64 {
    let mean = mean(xs);
    xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64
}
