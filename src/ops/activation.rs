//! Activations of the feed-forward layer: SwiGLU (Shazeer 2020, eq. 6) and GELU (Hendrycks and
//! Gimpel 2016).

mod gpu;

use std::mem::MaybeUninit;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use kernels::host::pool;
use kernels::host::row::exp;
use kernels::host::rows;
use multiversion::multiversion;

use super::backend::Backend;
use super::operation::{Described, Link, Operation, OperationKind, apply};
use super::place::{Host, MaybeOwned};

/// Rows of one task.
const ROWS: usize = 16;
/// Elements of one task of an element-wise function.
const BLOCK: usize = 1 << 14;
/// √(2/π), of GELU's tanh form.
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// Cubic coefficient of GELU's tanh form.
const CUBIC: f32 = 0.044_715;

/// `silu(gate) · up` on the CPU: `[tokens, 2·width]` holding `gate | up` → `[tokens, width]`.
///
/// # Errors
/// If the width is odd or the device fails.
pub fn swiglu(x: &Tensor, backend: &Backend) -> Result<Tensor> {
    if x.dims2()?.1 % 2 != 0 {
        bail!("swiglu: {:?} does not hold two halves", x.dims());
    }
    apply(x, SwiGlu, backend)
}

/// [`swiglu`] as a link of a chain.
pub fn swiglu_link() -> Link {
    Arc::new(SwiGlu)
}

/// [`gelu_tanh`] as a link of a chain.
pub fn gelu_tanh_link() -> Link {
    Arc::new(Gelu::Tanh)
}

/// [`swiglu`] as a composition of candle operations.
///
/// # Errors
/// As [`swiglu`].
pub fn swiglu_composed(x: &Tensor) -> Result<Tensor> {
    let width = x.dims2()?.1 / 2;
    x.narrow(1, 0, width)?.silu()? * x.narrow(1, width, width)?
}

/// GELU in its tanh form (`gelu_new`), on the CPU.
///
/// # Errors
/// If the device fails.
pub fn gelu_tanh(x: &Tensor, backend: &Backend) -> Result<Tensor> {
    apply(x, Gelu::Tanh, backend)
}

struct SwiGlu;

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

impl Described for SwiGlu {
    fn names(&self) -> [&'static str; 2] {
        ["swiglu", "swiglu backward"]
    }

    fn kind(&self) -> OperationKind {
        OperationKind::SwiGlu
    }
}

impl Operation<Host> for SwiGlu {
    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
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
        Ok(unsafe { rows::written(rows * width, write) })
    }

    fn backward(
        &self,
        x: &[f32],
        _y: &[f32],
        dy: MaybeOwned<Host>,
        rows: usize,
    ) -> Result<Vec<f32>> {
        let dy = dy.view();
        let width = dy.len() / rows.max(1);
        assert_eq!(
            (x.len(), dy.len()),
            (2 * rows * width, rows * width),
            "rows of swiglu"
        );
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
        Ok(unsafe { rows::written(x.len(), write) })
    }
}

/// Elements of the rows of one task.
fn block(width: usize) -> usize {
    (ROWS * width).max(1)
}

/// GELU by the error function, as it is defined, on the CPU.
///
/// # Errors
/// If the device fails.
pub fn gelu(x: &Tensor, backend: &Backend) -> Result<Tensor> {
    apply(x, Gelu::Exact, backend)
}

/// [`gelu`] as a link of a chain.
pub fn gelu_link() -> Link {
    Arc::new(Gelu::Exact)
}

/// Results of `f`, which maps a block of elements at a time.
fn mapped(x: &[f32], f: impl Fn(&[f32], &mut [MaybeUninit<f32>]) + Sync) -> Vec<f32> {
    let write = |y: &mut [MaybeUninit<f32>]| {
        pool::for_each(y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)), |(y, x)| f(x, y));
    };
    // SAFETY: both functions that are passed write their whole block.
    unsafe { rows::written(x.len(), write) }
}

/// `dy` after `f` has multiplied each element by the slope at `x`, a block at a time.
fn multiplied(
    x: &[f32],
    dy: MaybeOwned<Host>,
    f: impl Fn(&[f32], &mut [f32]) + Sync,
) -> Result<Vec<f32>> {
    let mut d = dy.into_owned()?;
    pool::for_each(d.chunks_mut(BLOCK).zip(x.chunks(BLOCK)), |(d, x)| f(x, d));
    Ok(d)
}

#[derive(Clone, Copy)]
enum Gelu {
    /// The exact form, by the error function.
    Exact,
    /// The approximation by tanh.
    Tanh,
}

impl Described for Gelu {
    fn names(&self) -> [&'static str; 2] {
        ["gelu", "gelu backward"]
    }

    fn kind(&self) -> OperationKind {
        OperationKind::Gelu
    }
}

impl Operation<Host> for Gelu {
    fn forward(&self, x: &[f32], _rows: usize) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Exact => mapped(x, gelu_block),
            Self::Tanh => mapped(x, gelu_tanh_block),
        })
    }

    fn backward(
        &self,
        x: &[f32],
        _y: &[f32],
        dy: MaybeOwned<Host>,
        _rows: usize,
    ) -> Result<Vec<f32>> {
        match self {
            Self::Exact => multiplied(x, dy, gelu_block_backward),
            Self::Tanh => multiplied(x, dy, gelu_tanh_block_backward),
        }
    }
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
