//! One element of a product on the matrix unit, as Intel defines its instructions.

use super::super::parts::CHUNK;

/// The three parts of a number.
fn parts(x: f32) -> [f32; 3] {
    let part = |x: f32| f32::from_bits(x.to_bits().wrapping_add(0x8000) & 0xffff_0000);
    let (high, middle) = (part(x), part(x - part(x)));
    [high, middle, x - high - middle]
}

/// `start + Σ x·w` in the unit's order.
pub fn element(x: &[f32], w: &[f32], start: f32) -> f32 {
    const PAIRS: [[usize; 2]; 6] = [[0, 2], [0, 1], [1, 1], [1, 0], [2, 0], [0, 0]];
    x.chunks(CHUNK)
        .zip(w.chunks(CHUNK))
        .fold(start, |sum, (x, w)| {
            PAIRS.iter().fold(sum, |sum, [i, j]| {
                let mut chains = [0f32; 2];
                for (p, (x, w)) in x.iter().zip(w).enumerate() {
                    let chain = &mut chains[p % 2];
                    *chain = parts(*x)[*i].mul_add(parts(*w)[*j], *chain);
                }
                sum + (chains[0] + chains[1])
            })
        })
}

#[test]
fn the_parts_of_a_number_are_bfloat16_and_add_up_to_it() {
    let numbers = (0..200_000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)));
    let in_range = |x: &f32| (1e-30..1e38).contains(&x.abs());
    for x in numbers.filter(in_range) {
        let [high, middle, low] = parts(x);
        assert!(
            [high, middle, low]
                .iter()
                .all(|p| p.to_bits() & 0xffff == 0),
            "{x:e}"
        );
        assert_eq!(
            f64::from(high) + f64::from(middle) + f64::from(low),
            f64::from(x)
        );
    }
}

/// Compares the error with that of a chain of fused multiply-adds, for sums that cancel and sums
/// that do not.
#[test]
fn sums_are_as_close_to_the_truth_as_those_of_a_chain() {
    use crate::random::Key;
    let key = Key::new(1, 1u64);
    for (shift, k) in [0.0, 0.5]
        .into_iter()
        .flat_map(|s| [32, 300, 2048].map(|k| (s, k)))
    {
        let (mut ours, mut chains) = (0f64, 0f64);
        for trial in 0..100u64 {
            let number = |i: u64| (key.uniform(2 * trial * k + i, 0) - shift) as f32;
            let [x, w] = [0, k].map(|at| (at..at + k).map(number).collect::<Vec<f32>>());
            let pairs = || x.iter().zip(&w);
            let truth: f64 = pairs().map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let chain = pairs().fold(0f32, |acc, (a, b)| a.mul_add(*b, acc));
            ours += (f64::from(element(&x, &w, 0.0)) - truth).powi(2);
            chains += (f64::from(chain) - truth).powi(2);
        }
        assert!(
            ours < chains,
            "{k} inputs less {shift}: {ours:e} against {chains:e}"
        );
    }
}
