//! RMSNorm (Zhang and Sennrich 2019, eq. 4) and LayerNorm (Ba et al. 2016, eq. 4) over the last
//! axis, and RMSNorm of single heads inside a packed `q | k | v` row (Qwen3).
//!
//! A row is cut into groups of `width` columns, each normalised separately. Sums run in fixed
//! lanes, so a row's bits do not depend on the batch; weight gradients are summed over fixed chunks
//! of rows, never by thread.

mod gpu;

use std::mem::MaybeUninit;
use std::sync::Arc;

use candle_core::{D, Result, Tensor, bail};
use kernels::host::pool;
use kernels::host::rows;
use multiversion::multiversion;

use super::operation::{Described, Link, Operation, OperationKind, apply};
use super::param::Param;
use super::place::{Host, MaybeOwned};
use super::storage;
use super::tap::tap;

/// Rows whose weight gradients are summed together: a constant, so that sums do not depend on
/// threads.
const ROWS_PER_SUM: usize = 64;
/// Rows of one task of the forward pass.
const ROWS: usize = 16;
const LANES: usize = 16;

/// A normalisation with its parameters.
#[derive(Clone)]
pub enum Norm {
    /// `x / sqrt(mean x² + eps) · w`
    Rms {
        /// `[width]`
        weight: Arc<Param>,
        /// Added to the mean square.
        eps: f32,
    },
    /// `(x − mean) / sqrt(var + eps) · w + b`
    Layer {
        /// `[width]`
        weight: Arc<Param>,
        /// `[width]`
        bias: Arc<Param>,
        /// Added to the variance.
        eps: f32,
    },
}

impl Norm {
    /// Normalises each row of `[tokens, width]`.
    ///
    /// # Errors
    /// If the width of `x` is not the norm's or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let width = self.weight().dims()[0];
        if x.dim(D::Minus1)? != width {
            bail!(
                "{}: input {:?} where the last axis should be {width}",
                self.weight().name(),
                x.dims()
            );
        }
        if self.weight().backend().has_kernels() {
            apply(x, self.fused(0, 1), self.weight().backend())
        } else {
            self.composed(x)
        }
    }

    /// Normalises `groups` groups of each row of `x` from column `first` on; other columns stay
    /// unchanged.
    ///
    /// # Errors
    /// If the groups reach past the row or the device fails.
    pub fn forward_groups(&self, x: &Tensor, first: usize, groups: usize) -> Result<Tensor> {
        let width = self.weight().dims()[0];
        if x.dim(D::Minus1)? < first + groups * width {
            bail!(
                "{}: {groups} groups of {width} from column {first} in a row of {:?}",
                self.weight().name(),
                x.dims()
            );
        }
        if self.weight().backend().has_kernels() {
            apply(x, self.fused(first, groups), self.weight().backend())
        } else {
            self.composed_groups(x, first, groups)
        }
    }

    /// [`Self::forward_groups`] as a link of a chain; one group from column 0 is a whole row of the
    /// norm's width.
    pub fn link(&self, first: usize, groups: usize) -> Link {
        Arc::new(self.fused(first, groups))
    }

    fn fused(&self, first: usize, groups: usize) -> NormOperation {
        NormOperation {
            norm: self.clone(),
            first,
            groups,
        }
    }

    /// [`Self::forward`] as a composition of candle operations.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let (centred, eps) = match self {
            Self::Rms { eps, .. } => (x.clone(), *eps),
            Self::Layer { eps, .. } => (x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?, *eps),
        };
        let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?
            .sqrt()?
            .recip()?;
        let unit = centred.broadcast_mul(&scale)?;
        let y = unit.broadcast_mul(self.weight().value())?;
        let y = match self.bias() {
            Some(bias) => y.broadcast_add(bias.value())?,
            None => y,
        };
        let (norm, unit) = (self.clone(), unit.detach());
        tap(&y, move |dy| {
            let width = norm.weight().dims()[0];
            norm.weight()
                .accumulate(&(dy * &unit)?.reshape(((), width))?.sum(0)?)?;
            norm.bias()
                .map_or(Ok(()), |b| b.accumulate(&dy.reshape(((), width))?.sum(0)?))
        })
    }

    /// [`Self::forward_groups`] as a composition of candle operations.
    ///
    /// # Errors
    /// As [`Self::forward_groups`].
    pub fn composed_groups(&self, x: &Tensor, first: usize, groups: usize) -> Result<Tensor> {
        let (tokens, total) = x.dims2()?;
        let width = self.weight().dims()[0];
        let middle = x
            .narrow(1, first, groups * width)?
            .reshape((tokens, groups, width))?;
        let middle = self.composed(&middle)?.reshape((tokens, groups * width))?;
        let after = first + groups * width;
        Tensor::cat(
            &[
                x.narrow(1, 0, first)?,
                middle,
                x.narrow(1, after, total - after)?,
            ],
            1,
        )
    }

    fn weight(&self) -> &Arc<Param> {
        match self {
            Self::Rms { weight, .. } | Self::Layer { weight, .. } => weight,
        }
    }

    fn bias(&self) -> Option<&Arc<Param>> {
        match self {
            Self::Rms { .. } => None,
            Self::Layer { bias, .. } => Some(bias),
        }
    }

    /// Calls `f` with the elements of weight and bias; the bias of RMSNorm is empty.
    fn with_slices<R>(&self, f: impl FnOnce(&[f32], &[f32]) -> R) -> Result<R> {
        storage::read(self.weight().value(), |w| match self.bias() {
            Some(bias) => storage::read(bias.value(), |b| f(w, b)),
            None => Ok(f(w, &[])),
        })?
    }

    #[inline(always)]
    fn statistics(&self, x: &[f32]) -> GroupStatistics {
        let n = x.len() as f32;
        let (mean, eps) = match self {
            Self::Rms { eps, .. } => (0.0, eps),
            Self::Layer { eps, .. } => (sum(x) / n, eps),
        };
        let scale = 1.0 / (sum_of_squares(x, mean) / n + eps).sqrt();
        GroupStatistics { mean, scale }
    }
}

/// Mean and scale by which a group is normalised.
#[derive(Clone, Copy)]
struct GroupStatistics {
    /// Mean of the group; zero for RMSNorm.
    mean: f32,
    /// Reciprocal of the standard deviation.
    scale: f32,
}

/// Partial sums of the parameters' gradients; `bias` is empty for RMSNorm.
struct NormSums {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x);
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += x);
    lanes.iter().sum()
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn sum_of_squares(x: &[f32], mean: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        lanes
            .iter_mut()
            .zip(chunk)
            .for_each(|(lane, x)| *lane = (x - mean).mul_add(x - mean, *lane));
    }
    lanes
        .iter_mut()
        .zip(rest)
        .for_each(|(lane, x)| *lane = (x - mean).mul_add(x - mean, *lane));
    lanes.iter().sum()
}

struct NormOperation {
    norm: Norm,
    first: usize,
    groups: usize,
}

impl NormOperation {
    fn forward_row(&self, x: &[f32], y: &mut [MaybeUninit<f32>], weight: &[f32], bias: &[f32]) {
        let end = self.first + self.groups * weight.len();
        for (from, to) in [(0, self.first), (end, x.len())] {
            let pairs = y[from..to].iter_mut().zip(&x[from..to]);
            pairs.for_each(|(y, x)| {
                y.write(*x);
            });
        }
        let groups = x[self.first..end].chunks_exact(weight.len());
        for (x, y) in groups.zip(y[self.first..end].chunks_exact_mut(weight.len())) {
            forward_group(x, y, weight, bias, self.norm.statistics(x));
        }
    }

    /// Replaces dy by dx in `d`, and adds to the partial sums of the parameters' gradients.
    fn backward_row(&self, x: &[f32], d: &mut [f32], weight: &[f32], sums: &mut NormSums) {
        let end = self.first + self.groups * weight.len();
        let groups = x[self.first..end].chunks_exact(weight.len());
        for (x, d) in groups.zip(d[self.first..end].chunks_exact_mut(weight.len())) {
            backward_group(x, d, weight, self.norm.statistics(x), sums);
        }
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn forward_group(
    x: &[f32],
    y: &mut [MaybeUninit<f32>],
    weight: &[f32],
    bias: &[f32],
    statistics: GroupStatistics,
) {
    let GroupStatistics { mean, scale } = statistics;
    let units = x.iter().zip(weight).map(|(x, w)| (x - mean) * scale * w);
    if bias.is_empty() {
        y.iter_mut().zip(units).for_each(|(y, unit)| {
            y.write(unit);
        });
    } else {
        y.iter_mut()
            .zip(units.zip(bias))
            .for_each(|(y, (unit, b))| {
                y.write(unit + b);
            });
    }
}

/// With u = (x−mean)·scale and g = dy·w: dx = scale·(g − u·mean(g·u) [− mean(g) for LayerNorm]).
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn backward_group(
    x: &[f32],
    d: &mut [f32],
    weight: &[f32],
    statistics: GroupStatistics,
    sums: &mut NormSums,
) {
    let GroupStatistics { mean, scale } = statistics;
    let (dw, db) = (&mut sums.weight[..x.len()], &mut sums.bias[..]);
    let n = x.len() as f32;
    let (mut along, mut total) = (0f32, 0f32);
    for i in 0..x.len() {
        let unit = (x[i] - mean) * scale;
        dw[i] += d[i] * unit;
        along += d[i] * weight[i] * unit;
    }
    if !db.is_empty() {
        for i in 0..x.len() {
            db[i] += d[i];
            total += d[i] * weight[i];
        }
    }
    for i in 0..x.len() {
        let unit = (x[i] - mean) * scale;
        d[i] = scale * (d[i] * weight[i] - unit * (along / n) - total / n);
    }
}

impl Described for NormOperation {
    fn names(&self) -> [&'static str; 2] {
        ["norm", "norm backward"]
    }

    fn kind(&self) -> OperationKind {
        OperationKind::Norm
    }
}

impl Operation<Host> for NormOperation {
    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let width = x.len() / rows.max(1);
        assert_eq!(x.len(), rows * width, "rows of a norm");
        self.norm.with_slices(|w, b| {
            let write = |y: &mut [MaybeUninit<f32>]| {
                let block = (width * ROWS).max(1);
                pool::for_each(y.chunks_mut(block).zip(x.chunks(block)), |(y, x)| {
                    let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
                    rows.for_each(|(y, x)| self.forward_row(x, y, w, b));
                });
            };
            // SAFETY: each row is written before, within and after the groups.
            unsafe { rows::written(x.len(), write) }
        })
    }

    fn backward(
        &self,
        x: &[f32],
        _y: &[f32],
        dy: MaybeOwned<Host>,
        rows: usize,
    ) -> Result<Vec<f32>> {
        let (mut d, total) = (dy.into_owned()?, x.len() / rows.max(1));
        let sums: Vec<NormSums> = self.norm.with_slices(|w, b| {
            let block = (total * ROWS_PER_SUM).max(1);
            pool::map(d.chunks_mut(block).zip(x.chunks(block)), |(d, x)| {
                let mut sums = NormSums {
                    weight: vec![0f32; w.len()],
                    bias: vec![0f32; b.len()],
                };
                for (d, x) in d.chunks_exact_mut(total).zip(x.chunks_exact(total)) {
                    self.backward_row(x, d, w, &mut sums);
                }
                sums
            })
        })?;
        add_sums(self.norm.weight(), sums.iter().map(|s| &s.weight))?;
        if let Some(bias) = self.norm.bias() {
            add_sums(bias, sums.iter().map(|s| &s.bias))?;
        }
        Ok(d)
    }
}

fn add_sums<'a>(param: &Param, sums: impl Iterator<Item = &'a Vec<f32>>) -> Result<()> {
    param.accumulate_with(|grad| {
        for part in sums {
            grad.iter_mut().zip(part).for_each(|(g, p)| *g += p);
        }
    })
}
