//! Activations of the feed-forward layer: SwiGLU (Shazeer 2020, eq. 6) and GELU (Hendrycks and
//! Gimpel 2016).

use std::mem::MaybeUninit;

use multiversion::multiversion;

use super::pool;
use super::row::exp;
use super::written::written;
use crate::arguments::Gelu;

/// Rows of one task.
const ROWS: usize = 16;
/// Elements of one task of an element-wise function.
const BLOCK: usize = 1 << 14;
/// √(2/π), of GELU's tanh form.
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// Cubic coefficient of GELU's tanh form.
const CUBIC: f32 = 0.044_715;

/// SwiGLU of `x`, `[rows, 2·width]` holding `gate | up`: `silu(gate) · up`, `[rows, width]`.
///
/// # Panics
/// If `x` does not hold `rows` rows of two halves: a bug of the caller.
pub fn swiglu(x: &[f32], rows: usize) -> Vec<f32> {
    let width = x.len() / 2 / rows.max(1);
    assert_eq!(x.len(), 2 * rows * width, "rows of swiglu");
    let write = |y: &mut [MaybeUninit<f32>]| {
        let blocks = y.chunks_mut(block(width)).zip(x.chunks(2 * block(width)));
        pool::for_each(blocks, |(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
                let (gate, up) = x.split_at(width);
                swiglu_row(gate, up, y);
            }
        });
    };
    // SAFETY: each row is written completely.
    unsafe { written(rows * width, write) }
}

/// The gradient of the input of [`swiglu`], given that of its result.
///
/// # Panics
/// If the lengths do not fit: a bug of the caller.
pub fn swiglu_backward(x: &[f32], dy: &[f32], rows: usize) -> Vec<f32> {
    let width = dy.len() / rows.max(1);
    let lengths = (x.len(), dy.len());
    assert_eq!(lengths, (2 * rows * width, rows * width), "rows of swiglu");
    let write = |dx: &mut [MaybeUninit<f32>]| {
        let size = 2 * block(width);
        let inputs = x.chunks(size).zip(dy.chunks(block(width)));
        pool::for_each(dx.chunks_mut(size).zip(inputs), |(dx, (x, dy))| {
            let inputs = x.chunks_exact(2 * width).zip(dy.chunks_exact(width));
            for (dx, (x, dy)) in dx.chunks_exact_mut(2 * width).zip(inputs) {
                let (gate, up) = x.split_at(width);
                let (dgate, dup) = dx.split_at_mut(width);
                swiglu_row_backward([gate, up, dy], dgate, dup);
            }
        });
    };
    // SAFETY: each row is written completely.
    unsafe { written(x.len(), write) }
}

/// Elements of the rows of one task.
fn block(width: usize) -> usize {
    (ROWS * width).max(1)
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn swiglu_row(gate: &[f32], up: &[f32], out: &mut [MaybeUninit<f32>]) {
    for ((&g, &u), out) in gate.iter().zip(up).zip(out) {
        out.write(g / (1.0 + exp(-g)) * u);
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn swiglu_row_backward(
    [gate, up, dy]: [&[f32]; 3],
    dgate: &mut [MaybeUninit<f32>],
    dup: &mut [MaybeUninit<f32>],
) {
    let inputs = gate.iter().zip(up).zip(dy);
    for (((&g, &u), &d), (dgate, dup)) in inputs.zip(dgate.iter_mut().zip(dup)) {
        let sigmoid = 1.0 / (1.0 + exp(-g));
        let silu = g * sigmoid;
        dup.write(d * silu);
        dgate.write(d * u * (sigmoid + silu * (1.0 - sigmoid)));
    }
}

/// GELU of each element.
pub fn gelu(form: Gelu, x: &[f32]) -> Vec<f32> {
    let f = match form {
        Gelu::Exact => gelu_block,
        Gelu::Tanh => gelu_tanh_block,
    };
    let write = |y: &mut [MaybeUninit<f32>]| {
        pool::for_each(y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)), |(y, x)| f(x, y));
    };
    // SAFETY: both functions write their whole block.
    unsafe { written(x.len(), write) }
}

/// Replaces the gradient of the result of [`gelu`], `d`, by that of the input.
///
/// # Panics
/// If the lengths differ: a bug of the caller.
pub fn gelu_backward(form: Gelu, x: &[f32], d: &mut [f32]) {
    assert_eq!(x.len(), d.len(), "elements of gelu");
    let f = match form {
        Gelu::Exact => gelu_block_backward,
        Gelu::Tanh => gelu_tanh_block_backward,
    };
    pool::for_each(d.chunks_mut(BLOCK).zip(x.chunks(BLOCK)), |(d, x)| f(x, d));
}

/// Cumulative distribution function of the normal distribution.
fn normal_cdf(x: f64) -> f64 {
    0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

/// Density of the normal distribution.
fn normal_density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

fn gelu_block(x: &[f32], y: &mut [MaybeUninit<f32>]) {
    for (y, &x) in y.iter_mut().zip(x) {
        y.write((f64::from(x) * normal_cdf(x.into())) as f32);
    }
}

fn gelu_block_backward(x: &[f32], d: &mut [f32]) {
    for (d, &x) in d.iter_mut().zip(x) {
        let x = f64::from(x);
        *d *= (normal_cdf(x) + x * normal_density(x)) as f32;
    }
}

/// tanh by one exponential; exactly ±1 for large arguments.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu_tanh_block(x: &[f32], y: &mut [MaybeUninit<f32>]) {
    for (&x, y) in x.iter().zip(y) {
        let t = tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
        y.write(0.5 * x * (1.0 + t));
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu_tanh_block_backward(x: &[f32], d: &mut [f32]) {
    for (&x, d) in x.iter().zip(d) {
        let t = tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
        let inner = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
        *d *= 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner;
    }
}
