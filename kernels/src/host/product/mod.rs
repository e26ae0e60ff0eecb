//! Matrix products: `y = x · Wᵀ` forward, in training and in decoding, and the products of the
//! backward pass.
//!
//! A [`ProductKernel`] says how the terms of an element are added up. With chains, every output
//! element is a single chain of fused multiply-adds over `k` in ascending order, starting from zero
//! (or, where a product is added, from the value in the destination). Tiles, panels, threads and
//! the number of rows only choose *which* elements are computed together, never the order within
//! one, so a row has the same bits alone, in any batch and on any CPU. This makes the generator's
//! log-probs equal to the training forward's; the generic `gemm` crate changes its order with the
//! shape.
//!
//! On a processor with a matrix unit, `tiles` is up to twice as fast, with an order of sums of its
//! own.
//!
//! Both operands are read in packed form (Goto and van de Geijn 2008). The generator packs weights
//! once per rollout ([`Panels`]); a training pass has so many rows that packing on the way costs
//! less than holding a second copy.
//!
//! Imports run one way: `lanes`, `matrix` → `pack`, `parts` → `panel_layout`, `factor`, `panels` →
//! `task` → `chains`, `tiles` → `run` → `gradient` and the functions here.

mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx;
mod caller;
mod chains;
mod destination;
mod factor;
mod gradient;
mod grid;
mod kernel;
pub(crate) mod lanes;
mod matrix;
mod pack;
mod panel_layout;
mod panels;
#[cfg(target_arch = "x86_64")]
mod parts;
mod run;
mod task;
mod threads;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::mem::MaybeUninit;

use super::written::written;
pub use destination::Write;
pub(crate) use destination::{Destination, as_uninit};
pub(crate) use factor::Factor;
pub use gradient::{GradientFactor, GradientOf, with_factor};
pub use kernel::{ProductKernel, TilesUsable};
pub use lanes::LANES;
use lanes::Line;
pub use matrix::Matrix;
pub(crate) use pack::pack;
use panel_layout::PanelLayout;
pub use panels::Panels;
use panels::{pack_all, pack_stacked};
use run::{LeftSide, multiply_sides};
use task::FEW_ROWS;
pub use threads::Threads;
use threads::{PANELS, with_buffer};

/// Panels of a register tile, at most.
const TILE_PANELS: usize = 3;
/// Elements that are packed on the way before they are used: about what the caches hold.
const PACKED: usize = 1 << 21;
/// Fewest rows of a matrix that are packed together, where there are many.
const LEAST_DEPTH: usize = 1 << 10;

/// A weight `[outputs, inputs]` as a product reads it.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// Packed beforehand.
    Panels(&'a Panels),
    /// Row-major; packed on the way.
    Rows(Matrix<'a>),
}

impl Weight<'_> {
    fn outputs(&self) -> usize {
        match self {
            Self::Panels(panels) => panels.outputs(),
            Self::Rows(rows) => rows.height(),
        }
    }
}

/// `x · Wᵀ` for `x: [m, k]` and weights side by side: `[m, Σ outputs]`.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn product(kernel: ProductKernel, x: Matrix, weights: &[Weight]) -> Vec<f32> {
    let width = weights.iter().map(Weight::outputs).sum();
    let write = |y: &mut [MaybeUninit<f32>]| {
        fill(kernel, x, weights, Destination::new(y, width), Write::Set);
    };
    // SAFETY: the weights' columns are all columns, and each of them is set.
    unsafe { written(x.height() * width, write) }
}

/// `y += x · Wᵀ`; the sums start from the values in `y: [m, outputs]`.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn add_product(kernel: ProductKernel, x: Matrix, weight: Weight, y: &mut [f32]) {
    add_product_at(kernel, x, weight, y, weight.outputs(), 0);
}

/// [`add_product`] to the columns of `y` from `column` on; rows of `y` are `width` apart.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn add_product_at(
    kernel: ProductKernel,
    x: Matrix,
    weight: Weight,
    y: &mut [f32],
    width: usize,
    column: usize,
) {
    let y = Destination::new(as_uninit(y), width).right(column);
    fill(kernel, x, &[weight], y, Write::Add);
}

fn fill(kernel: ProductKernel, x: Matrix, weights: &[Weight], y: Destination, write: Write) {
    let count = x.height().div_ceil(LANES);
    let many = x.height() > FEW_ROWS || count * x.width() > chains::FEW;
    if many || kernel != ProductKernel::Chains {
        return fill_from(kernel, x.into(), weights, y, write);
    }
    // Few rows are packed once for all pieces.
    with_buffer(&PANELS, |packed| {
        let lines = count * x.width();
        if packed.len() < lines {
            packed.resize(lines, Line::default());
        }
        // SAFETY: the function chooses instructions that the processor has.
        unsafe { chains::pack_few(x, &mut packed[..lines]) };
        let left = LeftSide {
            a: x,
            packed: Some(packed),
        };
        fill_from(kernel, left, weights, y, write);
    });
}

fn fill_from(
    kernel: ProductKernel,
    x: LeftSide,
    weights: &[Weight],
    mut y: Destination,
    write: Write,
) {
    if let Some(matrices) = side_by_side(weights) {
        return fill_joined(kernel, x, &matrices, y, write);
    }
    let mut packed = Vec::new();
    for weight in weights {
        match weight {
            Weight::Panels(panels) => packed.push((panels.factor(), y)),
            Weight::Rows(weight) => multiply_at(kernel, x.a, weight.t(), y, write, Threads::All),
        }
        y = y.right(weight.outputs());
    }
    // SAFETY: the columns of the weights are disjoint, and `y` is initialised where it is added to.
    unsafe { multiply_sides(kernel, x, &packed, write, Threads::All) };
}

/// Weights whose panels, packed on the way, can lie side by side as those of one matrix.
fn side_by_side<'a>(weights: &[Weight<'a>]) -> Option<Vec<Matrix<'a>>> {
    let matrices = weights.iter().map(|weight| match weight {
        Weight::Rows(rows) => Some(*rows),
        Weight::Panels(_) => None,
    });
    let matrices: Vec<Matrix> = matrices.collect::<Option<_>>()?;
    let (_, before) = matrices.split_last()?;
    let whole = before.iter().all(|m| m.height().is_multiple_of(LANES));
    let elements: usize = matrices.iter().map(|m| m.height() * m.width()).sum();
    (whole && elements <= PACKED).then_some(matrices)
}

fn fill_joined(
    kernel: ProductKernel,
    x: LeftSide,
    matrices: &[Matrix],
    y: Destination,
    write: Write,
) {
    let columns = matrices.iter().map(Matrix::height).sum();
    let layout = PanelLayout::of(kernel);
    with_buffer(&PANELS, |packed| {
        for matrix in matrices {
            assert_eq!(matrix.width(), x.a.width(), "inner sizes of a product");
        }
        pack_all(matrices, layout, packed, Threads::All);
        let b = Factor::packed(packed, layout, x.a.width(), columns);
        // SAFETY: there is one destination, initialised where it is added to.
        unsafe { multiply_sides(kernel, x, &[(b, y)], write, Threads::All) };
    });
}

/// `a · b`.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn multiplied(kernel: ProductKernel, a: Matrix, b: Matrix) -> Vec<f32> {
    let width = b.width();
    let write = |c: &mut [MaybeUninit<f32>]| {
        let c = Destination::new(c, width);
        multiply_at(kernel, a, b, c, Write::Set, Threads::All);
    };
    // SAFETY: every column of every row is set.
    unsafe { written(a.height() * width, write) }
}

/// `a · b` for a `b` of several matrices stacked one below the other.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn multiplied_stacked(kernel: ProductKernel, a: Matrix, parts: &[Matrix]) -> Vec<f32> {
    let width = parts.first().map_or(0, Matrix::width);
    let rows: usize = parts.iter().map(Matrix::height).sum();
    assert_eq!(a.width(), rows, "inner sizes of a product");
    let write = |c: &mut [MaybeUninit<f32>]| {
        let c = Destination::new(c, width);
        let (layout, before) = (
            PanelLayout::of(kernel),
            &parts[..parts.len().saturating_sub(1)],
        );
        match rows * width <= PACKED && before.iter().all(|part| layout.can_be_cut(part.height())) {
            true => multiply_joined(kernel, a, parts, c),
            false => multiply_in_turn(kernel, a, parts, c),
        }
    };
    // SAFETY: every column of every row is set.
    unsafe { written(a.height() * width, write) }
}

fn multiply_joined(kernel: ProductKernel, a: Matrix, parts: &[Matrix], c: Destination) {
    let layout = PanelLayout::of(kernel);
    let width = parts.first().map_or(0, Matrix::width);
    with_buffer(&PANELS, |packed| {
        pack_stacked(parts, layout, packed);
        let b = Factor::packed(packed, layout, a.width(), width);
        // SAFETY: there is one destination, and it is set.
        unsafe { multiply_sides(kernel, a.into(), &[(b, c)], Write::Set, Threads::All) };
    });
}

/// Continues each element's sum from part to part through memory. This changes no bit of a chain,
/// nor of the matrix unit's sums where the parts could be packed together.
fn multiply_in_turn(kernel: ProductKernel, a: Matrix, parts: &[Matrix], c: Destination) {
    let (mut column, mut write) = (0, Write::Set);
    for part in parts {
        let columns = a.columns(column..column + part.height());
        multiply_at(kernel, columns, *part, c, write, Threads::All);
        (column, write) = (column + part.height(), Write::Add);
    }
}

/// `c = a · b` or `c += a · b`; rows of `c` are `stride` apart.
///
/// # Panics
/// If the shapes disagree or `c` is too short: a bug of the caller.
pub fn multiply(
    kernel: ProductKernel,
    a: Matrix,
    b: Matrix,
    c: &mut [f32],
    stride: usize,
    write: Write,
    threads: Threads,
) {
    let c = Destination::new(as_uninit(c), stride);
    multiply_at(kernel, a, b, c, write, threads);
}

/// Packs a part of `b` at a time: some of its rows, and some columns of these.
fn multiply_at(
    kernel: ProductKernel,
    a: Matrix,
    b: Matrix,
    c: Destination,
    write: Write,
    threads: Threads,
) {
    assert_eq!(a.width(), b.height(), "inner sizes of a product");
    let (n, k) = (b.width(), a.width());
    let depth = (PACKED / n.max(1)).clamp(LEAST_DEPTH, k.max(LEAST_DEPTH));
    // Every layout can be cut at a multiple of this depth, so the order of sums does not depend on
    // how the right-hand side is packed.
    let depth = depth.next_multiple_of(LEAST_DEPTH);
    let layout = PanelLayout::of(kernel);
    let step = (PACKED / depth.min(k).max(1)).next_multiple_of(TILE_PANELS * LANES);
    with_buffer(&PANELS, |packed| {
        let mut write = write;
        for start in (0..k.max(1)).step_by(depth) {
            let inputs = start..k.min(start + depth);
            let (a, b) = (a.columns(inputs.clone()), b.rows(start, inputs.len()).t());
            for first in (0..n).step_by(step) {
                let part = b.rows(first, step.min(n - first));
                pack_all(&[part], layout, packed, threads);
                let b = Factor::packed(packed, layout, part.width(), part.height());
                let sides = [(b, c.right(first))];
                // SAFETY: there is one destination, initialised where it is added to.
                unsafe { multiply_sides(kernel, a.into(), &sides, write, threads) };
            }
            write = Write::Add;
        }
    });
}

#[cfg(test)]
mod tests;
