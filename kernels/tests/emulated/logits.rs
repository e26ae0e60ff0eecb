//! Rows of logits against `kernels::host::row`, bit for bit, and gradients against finite
//! differences.

use kernels::device::logits::{Columns, Targets, backward, forward};
use kernels::host::row;

use super::{in_every_order, numbers};

const VOCABULARY: usize = 1003;
const TOKENS: [u32; 3] = [5, 400, 1002];
const INV_TEMPERATURE: f32 = 0.7;

/// The whole vocabulary, a few tokens, and more than a block of 256.
fn kept() -> [Vec<u32>; 3] {
    [
        vec![],
        vec![3, 4, 400, 401, 1000],
        (0..700).map(|i| i + 303).collect(),
    ]
}

fn logits() -> Vec<f32> {
    numbers(TOKENS.len() * VOCABULARY, 1)
        .iter()
        .map(|x| 4.0 * x)
        .collect()
}

/// The results of the host for one row.
fn expected(logits: &[f32], token: u32, kept: &[u32]) -> [f32; 3] {
    let whole = row::stats(logits, INV_TEMPERATURE);
    let scores = match kept {
        [] => logits.to_vec(),
        kept => row::gather(logits, kept),
    };
    let stats = row::stats(&scores, INV_TEMPERATURE);
    [
        row::log_prob(logits, INV_TEMPERATURE, &stats, token),
        row::entropy(&scores, INV_TEMPERATURE, &stats),
        row::log_prob(logits, INV_TEMPERATURE, &whole, token),
    ]
}

#[test]
fn log_probs_and_entropies_have_the_bits_of_the_host() {
    let (mut logits, kept) = (logits(), kept());
    // Impossible and nearly impossible tokens, in the whole row and in both sets.
    for at in [7, VOCABULARY + 3, 2 * VOCABULARY + 500] {
        (logits[at], logits[at + 1]) = (f32::NEG_INFINITY, -500.0);
    }
    let rows = logits.chunks(VOCABULARY).zip(TOKENS).zip(&kept);
    let expected: Vec<f32> = rows
        .flat_map(|((x, token), k)| expected(x, token, k))
        .collect();
    for columns in [Columns::Own, Columns::OwnAndWhole] {
        let found = in_every_order(|gpu| {
            let kept = kept.each_ref().map(Vec::as_slice);
            let targets = Targets::new(gpu, &TOKENS, &kept, VOCABULARY).unwrap();
            let array = gpu.upload(&logits).unwrap();
            let out = forward(array.slice(), &targets, columns, INV_TEMPERATURE).unwrap();
            out.download().unwrap()
        });
        let rows = expected.chunks(3).flat_map(|row| &row[..columns.count()]);
        assert_eq!(found, rows.copied().collect::<Vec<_>>());
    }
}

/// A logit of −∞ has log p = −∞, and its gradient is 0, not NaN.
#[test]
fn an_impossible_token_has_no_gradient() {
    let mut logits = logits();
    logits[7] = f32::NEG_INFINITY;
    let found = in_every_order(|gpu| {
        let kept = kept();
        let kept = kept.each_ref().map(Vec::as_slice);
        let targets = Targets::new(gpu, &TOKENS, &kept, VOCABULARY).unwrap();
        let mut array = gpu.upload(&logits).unwrap();
        let gradients = gpu.upload(&[0.8, 0.3, 0.0].repeat(3)).unwrap();
        let columns = Columns::OwnAndWhole;
        let (x, given) = (array.slice_mut(), gradients.slice());
        backward(x, &targets, given, columns, INV_TEMPERATURE).unwrap();
        array.download().unwrap()
    });
    assert!(found.iter().all(|gradient| gradient.is_finite()));
    assert_eq!(found[7], 0.0);
}

#[test]
fn logits_of_another_vocabulary_are_refused() {
    let gpu = super::device(super::ORDERS[0]);
    let targets = Targets::new(&gpu, &[5], &[&[]], 10).unwrap();
    let logits = gpu.upload(&[0f32; 5]).unwrap();
    let refused = forward(logits.slice(), &targets, Columns::Own, 1.0);
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("5 elements where 10"), "{message}");
}

/// The results of one row in double precision.
fn defined(logits: &[f64], token: u32, kept: &[u32]) -> [f64; 3] {
    let t = f64::from(INV_TEMPERATURE);
    let all: Vec<u32> = (0..logits.len() as u32).collect();
    let log_sum = |ids: &[u32]| {
        ids.iter()
            .map(|&i| (t * logits[i as usize]).exp())
            .sum::<f64>()
            .ln()
    };
    let own = if kept.is_empty() { &all } else { kept };
    let log_p = |i: u32, sum: f64| t * logits[i as usize] - sum;
    let (sum, whole) = (log_sum(own), log_sum(&all));
    let entropy = own
        .iter()
        .map(|&i| -log_p(i, sum).exp() * log_p(i, sum))
        .sum();
    [log_p(token, sum), entropy, log_p(token, whole)]
}

#[test]
fn gradients_are_those_of_the_definition() {
    let (logits, kept) = (logits(), kept());
    // With and without an entropy term, and with and without the whole vocabulary's log-prob.
    let given = [
        [0.8, 0.0, 0.0],
        [0.8, 0.3, 0.0],
        [-0.4, 0.3, 0.6],
        [0.5, 0.0, -0.7],
    ];
    for given in given {
        let found = in_every_order(|gpu| {
            let kept = kept.each_ref().map(Vec::as_slice);
            let targets = Targets::new(gpu, &TOKENS, &kept, VOCABULARY).unwrap();
            let mut array = gpu.upload(&logits).unwrap();
            let gradients = gpu.upload(&[given; 3].concat()).unwrap();
            let columns = Columns::OwnAndWhole;
            let (x, given) = (array.slice_mut(), gradients.slice());
            backward(x, &targets, given, columns, INV_TEMPERATURE).unwrap();
            array.download().unwrap()
        });
        for (index, (row, found)) in logits
            .chunks(VOCABULARY)
            .zip(found.chunks(VOCABULARY))
            .enumerate()
        {
            let wide: Vec<f64> = row.iter().map(|&x| x.into()).collect();
            let value = |x: &[f64]| {
                let results = defined(x, TOKENS[index], &kept[index]);
                results
                    .iter()
                    .zip(given)
                    .map(|(r, g)| r * f64::from(g))
                    .sum::<f64>()
            };
            for at in (0..VOCABULARY).step_by(101).chain([5, 400, 401, 1002]) {
                let moved = |by: f64| {
                    let mut x = wide.clone();
                    x[at] += by;
                    value(&x)
                };
                let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
                let distance = (f64::from(found[at]) - slope).abs();
                assert!(
                    distance < 2e-6,
                    "row {index}, logit {at}: {} and {slope}",
                    found[at]
                );
            }
        }
    }
}
