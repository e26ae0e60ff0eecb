//! The nonlinear middle of the feed-forward layer: SwiGLU (Shazeer 2020, eq. 6) and GELU (Hendrycks and Gimpel 2016).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rollout::row::exp;

use super::dispatch::has_kernels;
use super::pool;
use super::profile;
use super::residual::Operation;
use super::storage;

/// Rows of one task.
const ROWS: usize = 16;
/// Elements of one task where rows do not matter.
const BLOCK: usize = 1 << 14;
/// √(2/π), of GELU's tanh form.
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// Cubic coefficient of GELU's tanh form.
const CUBIC: f32 = 0.044_715;

/// `silu(gate) · up` of `[tokens, 2·width]` holding `gate | up` → `[tokens, width]`.
///
/// # Errors
/// If the width is odd or the device fails.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    if x.dims2()?.1 % 2 != 0 {
        bail!("swiglu: {:?} does not hold two halves", x.dims());
    }
    if has_kernels(x.device()) {
        x.contiguous()?.apply_op1(SwiGlu)
    } else {
        swiglu_composed(x)
    }
}

/// [`swiglu`] as a link of a chain.
pub fn swiglu_operation() -> Operation {
    Arc::new(Box::new(SwiGlu))
}

/// [`gelu_tanh`] as a link of a chain.
pub fn gelu_tanh_operation() -> Operation {
    Arc::new(Box::new(GeluTanh))
}

/// [`swiglu`] as a composition of candle operations.
///
/// # Errors
/// As [`swiglu`].
pub fn swiglu_composed(x: &Tensor) -> Result<Tensor> {
    let width = x.dims2()?.1 / 2;
    x.narrow(1, 0, width)?.silu()? * x.narrow(1, width, width)?
}

/// GELU in its tanh form (`gelu_new`).
///
/// # Errors
/// If the device fails.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if has_kernels(x.device()) {
        x.contiguous()?.apply_op1(GeluTanh)
    } else {
        x.gelu()
    }
}

struct SwiGlu;

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn swiglu_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((&g, &u), out) in gate.iter().zip(up).zip(out) {
        *out = g / (1.0 + exp(-g)) * u;
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn swiglu_row_backward(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    for (i, &d) in dy.iter().enumerate() {
        let sigmoid = 1.0 / (1.0 + exp(-gate[i]));
        let silu = gate[i] * sigmoid;
        dup[i] = d * silu;
        dgate[i] = d * up[i] * (sigmoid + silu * (1.0 - sigmoid));
    }
}

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = profile::span("swiglu");
        let (x, rows, width) = (storage::slice(s, l)?, l.dims()[0], l.dims()[1] / 2);
        let mut y = vec![0f32; rows * width];
        let blocks = y.chunks_mut(ROWS * width).zip(x.chunks(ROWS * 2 * width));
        pool::for_each(blocks, |(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
                let (gate, up) = x.split_at(width);
                swiglu_row(gate, up, y);
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((rows, width))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let _span = profile::span("swiglu backward");
        let (rows, columns) = x.dims2()?;
        let (dy, width) = (dy.contiguous()?, columns / 2);
        let mut dx = vec![0f32; rows * columns];
        storage::read(x, |x| {
            storage::read(&dy, |dy| {
                let inputs = x.chunks(ROWS * columns).zip(dy.chunks(ROWS * width));
                let blocks = dx.chunks_mut(ROWS * columns).zip(inputs);
                pool::for_each(blocks, |(dx, (x, dy))| {
                    let inputs = x.chunks_exact(columns).zip(dy.chunks_exact(width));
                    for (dx, (x, dy)) in dx.chunks_exact_mut(columns).zip(inputs) {
                        let (gate, up) = x.split_at(width);
                        let (dgate, dup) = dx.split_at_mut(width);
                        swiglu_row_backward(gate, up, dy, dgate, dup);
                    }
                });
            })
        })??;
        Ok(Some(Tensor::from_vec(dx, (rows, columns), x.device())?))
    }
}

struct GeluTanh;

/// tanh through one exponential; ±1 at the ends.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu_block(x: &[f32], out: &mut [f32]) {
    for (&x, out) in x.iter().zip(out) {
        let t = tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
        *out = 0.5 * x * (1.0 + t);
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu_block_backward(x: &[f32], d: &mut [f32]) {
    for (&x, d) in x.iter().zip(d) {
        let t = tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
        let inner = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
        *d *= 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner;
    }
}

impl CustomOp1 for GeluTanh {
    fn name(&self) -> &'static str {
        "gelu_tanh"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = profile::span("gelu");
        let x = storage::slice(s, l)?;
        let mut y = vec![0f32; x.len()];
        pool::for_each(y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)), |(y, x)| {
            gelu_block(x, y)
        });
        Ok((CpuStorage::F32(y), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let _span = profile::span("gelu backward");
        let mut d = dy.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        storage::read(x, |x| {
            pool::for_each(d.chunks_mut(BLOCK).zip(x.chunks(BLOCK)), |(d, x)| {
                gelu_block_backward(x, d)
            });
        })?;
        Ok(Some(Tensor::from_vec(d, x.dims(), x.device())?))
    }
}
