//! RMSNorm (Zhang and Sennrich 2019, eq. 4) and LayerNorm (Ba et al. 2016, eq. 4) of groups of
//! columns, each normalised separately.
//!
//! Sums run in fixed lanes, so a row's bits do not depend on the batch; the parameters' gradients
//! are summed over fixed chunks of rows, never by thread.

use std::iter::repeat_with;
use std::mem::MaybeUninit;
use std::ops::Range;

use multiversion::multiversion;

use super::pool;
use super::written::written;
use crate::arguments::Groups;

/// Rows whose weight gradients are summed together: a constant, so that sums do not depend on
/// threads.
const ROWS_PER_SUM: usize = 64;
/// Rows of one task of the forward pass.
const ROWS: usize = 16;
const LANES: usize = 16;

/// A norm's parameters.
#[derive(Clone, Copy)]
pub enum NormParameters<'a> {
    /// RMSNorm: `x / sqrt(mean x² + eps) · weight`
    Rms {
        /// `[width]`
        weight: &'a [f32],
    },
    /// LayerNorm: `(x − mean) / sqrt(var + eps) · weight + bias`
    Layer {
        /// `[width]`
        weight: &'a [f32],
        /// `[width]`
        bias: &'a [f32],
    },
}

/// Sums of the gradients of a norm's parameters over chunks of rows.
pub struct NormSums {
    /// `[chunks, width]`
    pub weight: Vec<f32>,
    /// `[chunks, width]`; empty for RMSNorm.
    pub bias: Vec<f32>,
}

/// Mean and scale by which a group is normalised.
#[derive(Clone, Copy)]
struct GroupStatistics {
    /// Mean of the group; zero for RMSNorm.
    mean: f32,
    /// Reciprocal of the standard deviation.
    scale: f32,
}

impl<'a> NormParameters<'a> {
    fn weight(&self) -> &'a [f32] {
        match self {
            Self::Rms { weight } | Self::Layer { weight, .. } => weight,
        }
    }

    /// The bias; that of RMSNorm is empty.
    fn bias(&self) -> &'a [f32] {
        match self {
            Self::Rms { .. } => &[],
            Self::Layer { bias, .. } => bias,
        }
    }

    /// Checks lengths, and returns the columns of a row and those that the groups take.
    fn check(&self, x: &[f32], groups: Groups) -> (usize, Range<usize>) {
        let (columns, width) = (groups.columns as usize, groups.width as usize);
        let first = groups.first as usize;
        let end = first + groups.count as usize * width;
        assert!(end <= columns, "groups of a norm");
        assert_eq!(x.len(), groups.rows * columns, "rows of a norm");
        assert_eq!(self.weight().len(), width, "weight of a norm");
        if let Self::Layer { bias, .. } = self {
            assert_eq!(bias.len(), width, "bias of a norm");
        }
        (columns, first..end)
    }

    #[inline(always)]
    fn statistics(&self, x: &[f32], eps: f32) -> GroupStatistics {
        let n = x.len() as f32;
        let mean = match self {
            Self::Rms { .. } => 0.0,
            Self::Layer { .. } => sum(x) / n,
        };
        let scale = 1.0 / (sum_of_squares(x, mean) / n + eps).sqrt();
        GroupStatistics { mean, scale }
    }
}

/// The normalised rows, `[rows, columns]`; columns outside the groups are copied. `eps` is added to
/// the mean square or the variance.
///
/// # Panics
/// If the groups reach past the row or lengths do not fit: a bug of the caller.
pub fn forward(x: &[f32], parameters: NormParameters, groups: Groups, eps: f32) -> Vec<f32> {
    let (columns, within) = parameters.check(x, groups);
    let write = |y: &mut [MaybeUninit<f32>]| {
        let block = (columns * ROWS).max(1);
        pool::for_each(y.chunks_mut(block).zip(x.chunks(block)), |(y, x)| {
            let rows = y.chunks_exact_mut(columns).zip(x.chunks_exact(columns));
            rows.for_each(|(y, x)| forward_row(x, y, &parameters, within.clone(), eps));
        });
    };
    // SAFETY: each row is written before, within and after the groups.
    unsafe { written(x.len(), write) }
}

fn forward_row(
    x: &[f32],
    y: &mut [MaybeUninit<f32>],
    parameters: &NormParameters,
    within: Range<usize>,
    eps: f32,
) {
    for outside in [0..within.start, within.end..x.len()] {
        let pairs = y[outside.clone()].iter_mut().zip(&x[outside]);
        pairs.for_each(|(y, x)| {
            y.write(*x);
        });
    }
    let (weight, bias) = (parameters.weight(), parameters.bias());
    let groups = x[within.clone()].chunks_exact(weight.len());
    for (x, y) in groups.zip(y[within].chunks_exact_mut(weight.len())) {
        forward_group(x, y, weight, bias, parameters.statistics(x, eps));
    }
}

/// Replaces the gradient of the result, `d`, by that of the input `x`, and returns the sums of the
/// parameters' gradients, which are to be added up in order.
///
/// # Panics
/// As [`forward`], and if `x` and `d` differ in length: bugs of the caller.
pub fn backward(
    x: &[f32],
    d: &mut [f32],
    parameters: NormParameters,
    groups: Groups,
    eps: f32,
) -> NormSums {
    let (columns, within) = parameters.check(x, groups);
    assert_eq!(x.len(), d.len(), "gradient of a norm");
    let (weight, bias) = (parameters.weight(), parameters.bias());
    let chunks = groups.rows.div_ceil(ROWS_PER_SUM);
    let mut sums = NormSums {
        weight: vec![0f32; chunks * weight.len()],
        bias: vec![0f32; chunks * bias.len()],
    };
    let of_weight = sums.weight.chunks_mut(weight.len().max(1));
    let of_bias = sums.bias.chunks_mut(bias.len().max(1));
    let sums_of_chunks = of_weight.zip(of_bias.chain(repeat_with(Default::default)));
    let block = (columns * ROWS_PER_SUM).max(1);
    let chunks = d.chunks_mut(block).zip(x.chunks(block));
    pool::for_each(chunks.zip(sums_of_chunks), |((d, x), (dw, db))| {
        for (d, x) in d.chunks_exact_mut(columns).zip(x.chunks_exact(columns)) {
            let groups = x[within.clone()].chunks_exact(weight.len());
            for (x, d) in groups.zip(d[within.clone()].chunks_exact_mut(weight.len())) {
                let statistics = parameters.statistics(x, eps);
                backward_group(x, d, weight, statistics, [&mut *dw, &mut *db]);
            }
        }
    });
    sums
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
    [dw, db]: [&mut [f32]; 2],
) {
    let GroupStatistics { mean, scale } = statistics;
    let dw = &mut dw[..x.len()];
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
