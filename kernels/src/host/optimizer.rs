//! The global norm of gradients, and AdamW's step.

use multiversion::multiversion;

use super::pool;
use crate::arguments::Factors;

/// Elements whose squares are summed together.
const BLOCK: usize = 1 << 14;
/// Elements of one task of a step, few enough to divide small parameters among all threads.
const STEP: usize = 1 << 12;

/// The norm of all gradients together. Squares are summed in fixed blocks, so threads do not change
/// it.
pub fn global_norm(gradients: &[f32]) -> f64 {
    let sums = pool::map(gradients.chunks(BLOCK), sum_of_squares);
    sums.iter().sum::<f64>().sqrt()
}

/// A parameter and the two moments of its gradient, all of one length.
pub struct ParameterSlices<'a> {
    /// Values.
    pub values: &'a mut [f32],
    /// Gradient.
    pub gradients: &'a [f32],
    /// First moment.
    pub first: &'a mut [f32],
    /// Second moment.
    pub second: &'a mut [f32],
}

/// One step of AdamW (Loshchilov and Hutter 2019, algorithm 2).
///
/// # Panics
/// If the lengths differ: a bug of the caller.
pub fn step(parameter: ParameterSlices, factors: Factors) {
    let ParameterSlices {
        values,
        gradients,
        first,
        second,
    } = parameter;
    let lengths = [gradients.len(), first.len(), second.len()];
    assert_eq!(lengths, [values.len(); 3], "lengths of an optimizer's step");
    let moments = first.chunks_mut(STEP).zip(second.chunks_mut(STEP));
    let blocks = values.chunks_mut(STEP).zip(gradients.chunks(STEP));
    pool::for_each(blocks.zip(moments), |((p, g), (m, v))| {
        step_block(p, g, m, v, factors)
    });
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn step_block(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: Factors) {
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * f.clip;
        *m = f.beta1 * *m + (1.0 - f.beta1) * g;
        *v = f.beta2 * *v + (1.0 - f.beta2) * g * g;
        *p = *p * f.keep - f.rate * *m / (v.sqrt() * f.root + f.epsilon);
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn sum_of_squares(block: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (whole, rest) = block.as_chunks::<8>();
    for chunk in whole {
        add_squares(&mut lanes, chunk);
    }
    add_squares(&mut lanes, rest);
    lanes.iter().sum()
}

#[inline(always)]
fn add_squares(lanes: &mut [f64; 8], gradients: &[f32]) {
    for (lane, &g) in lanes.iter_mut().zip(gradients) {
        *lane += f64::from(g) * f64::from(g);
    }
}
