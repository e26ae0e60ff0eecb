//! The random words against published test vectors, and the draws against their distributions.

use kernels::random::rand::{Rng, RngCore};
use kernels::random::rand_distr::StandardNormal;
use kernels::random::{Key, philox4x32};

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
    let words = |key: Key, a, b| {
        let mut stream = key.stream(a, b);
        [(); 6].map(|()| stream.next_u64())
    };
    let key = Key::new(7, 4u64);
    let entries = [
        words(key, 1, 2),
        words(Key::new(8, 4u64), 1, 2),
        words(Key::new(7 | 1 << 40, 4u64), 1, 2),
        words(Key::new(7, 1u64), 1, 2),
        words(key, 2, 1),
        words(key, 1, 3),
        words(key, 1 | 1 << 40, 2),
        words(key, 1, 2 | 1 << 40),
        words(key.child(0, 0), 1, 2),
    ];
    let mut all = entries.concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), entries.len() * 6, "{entries:x?}");
    assert_eq!(entries[0], words(key, 1, 2));
}

#[test]
fn uniform_draws_have_the_moments_of_the_unit_interval() {
    let key = Key::new(1, 4u64);
    let draws: Vec<f64> = (0..20_000).map(|b| key.uniform(3, b)).collect();
    assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
    // Standard errors: 0.002 for the mean, 0.0006 for the variance.
    assert!((mean(&draws) - 0.5).abs() < 0.008);
    assert!((variance(&draws) - 1.0 / 12.0).abs() < 0.0025);
}

#[test]
fn normal_draws_have_the_moments_of_the_standard_normal() {
    let stream = Key::new(1, 1u64).stream(5, 0);
    let draws: Vec<f64> = stream.sample_iter(StandardNormal).take(20_001).collect();
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
    let key = Key::new(2, 2u64);
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

/// The first draws of a seed and a purpose. Other values would change every result that follows
/// from a seed.
#[test]
fn first_draws_of_each_purpose_are_known() {
    #[rustfmt::skip]
    let cases = [
        (1u64, 0x905f_77ff_5f45_900e,
         0.563956737372129, 0.35316194128954337, [2, 5, 0, 7, 1, 6, 4, 3]),
        (2u64, 0x3b01_0641_1c76_d166,
         0.23048438157681095, -0.9256033718850852, [2, 7, 3, 1, 5, 0, 4, 6]),
        (3u64, 0xbd97_8007_6048_c7a7,
         0.7405929582603532, 0.6126387910493702, [1, 6, 7, 0, 2, 4, 5, 3]),
        (4u64, 0x5db9_c577_9a06_ad15,
         0.3661158959385157, -0.6934061217588011, [7, 3, 4, 1, 0, 2, 5, 6]),
        (6u64, 0x6214_adb0_f043_a517,
         0.3831280285815084, -0.5958650963376126, [4, 3, 6, 7, 0, 5, 2, 1]),
        (7u64, 0x5612_32a7_86e5_1c78,
         0.33621517744076745, -0.520829141768495, [4, 7, 5, 0, 1, 3, 2, 6]),
        (8u64, 0x869b_0200_959b_8797,
         0.5258027316500442, 0.07126896190114425, [6, 3, 2, 4, 7, 5, 0, 1]),
        (9u64, 0xac4e_f0c0_4c2a_cdb6,
         0.6730795354343783, 0.40461837208494716, [6, 1, 2, 5, 0, 7, 3, 4]),
        (10u64, 0xc002_221a_77f9_b05e,
         0.750032550298761, 0.8883478966613078, [7, 2, 6, 3, 0, 4, 1, 5]),
    ];
    for (purpose, word, uniform, normal, order) in cases {
        let key = Key::new(1, purpose);
        assert_eq!(key.stream(2, 3).next_u64(), word, "{purpose}");
        assert_eq!(key.uniform(2, 3), uniform, "{purpose}");
        let drawn: f64 = key.stream(2, 3).sample(StandardNormal);
        assert_eq!(drawn, normal, "{purpose}");
        assert_eq!(key.permutation(2, 8), order, "{purpose}");
    }
}

fn mean(xs: &[f64]) -> f64 {
    xs.iter().sum::<f64>() / xs.len() as f64
}

fn variance(xs: &[f64]) -> f64 {
    let mean = mean(xs);
    xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64
}
