//! Matrix products: `y = x · Wᵀ` forward, in training and in decode, and the products of the backward pass.
//!
//! Every output element is a single chain of fused multiply-adds over `k` in ascending order, starting from zero (or, where a
//! product is added, from what the destination holds). Tiles, panels, threads and the number of rows only choose *which* elements
//! are computed together, never the order inside one, so a row has the same bits alone, in any batch and on any CPU. This is what
//! makes the generator's log-probs equal to the training forward's; the generic `gemm` crate changes its order with the shape.
//!
//! Where the processor has a matrix unit, a run may compute its products in `tiles` instead: up to twice as fast, and with an order
//! of sums of their own ([`Arithmetic`]).
//!
//! Both operands are read in [`pack`]ed form (Goto and van de Geijn 2008). The generator packs weights once per rollout
//! ([`Panels`]); a training pass has so many rows that packing on the way costs less than holding a second copy.

mod ahead;
mod arithmetic;
mod destination;
mod factor;
mod grid;
mod kernel;
pub(crate) mod lanes;
mod layout;
mod matrix;
mod pack;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::cell::Cell;
use std::mem::MaybeUninit;

use super::{pool, storage};
pub use arithmetic::Arithmetic;
pub(crate) use destination::Destination;
pub use factor::{Factor, GradientOf, add_multiplied, add_multiplied_all, with_factor};
use grid::{Grid, share};
use kernel::{Rows, Task};
pub use lanes::LANES;
use lanes::Line;
use layout::Layout;
pub use matrix::{Matrix, Panels};
pub(crate) use pack::pack;

/// Rows that are few: packed once, or their parts held for all inputs, and not cut.
const FEW_ROWS: usize = 96;
/// Panels of a register tile, at most.
const TILE_PANELS: usize = 3;
/// Elements that are packed on the way before they are used: about what the caches hold.
const PACKED: usize = 1 << 21;
/// Rows of a matrix that are packed together at least, where they are many.
const LEAST_DEPTH: usize = 1 << 10;

/// What a product does with what the destination holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Replace it.
    Set,
    /// Add to it.
    Add,
}

/// Who computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread, which shares other work with the pool already.
    Caller,
    /// All threads of the pool.
    All,
}

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

thread_local! {
    static ROWS: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    static PANELS: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    static FACTOR: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Lends `f` a buffer of this thread's; one that asks while it is lent gets another.
fn with_buffer<R>(
    slot: &'static std::thread::LocalKey<Cell<Vec<Line>>>,
    f: impl FnOnce(&mut Vec<Line>) -> R,
) -> R {
    let mut buffer = slot.take();
    let result = f(&mut buffer);
    slot.set(buffer);
    result
}

/// `[m, Σ outputs]` = `x · Wᵀ` for weights side by side, for `x: [m, k]`.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn product(x: Matrix, weights: &[Weight]) -> Vec<f32> {
    let width = weights.iter().map(Weight::outputs).sum();
    let write = |y: &mut [MaybeUninit<f32>]| {
        fill(x, weights, Destination::new(y, width), Write::Set);
    };
    // SAFETY: the weights' columns are all columns, and each of them is set.
    unsafe { storage::written(x.height() * width, write) }
}

/// `y += x · Wᵀ`; the sums of `k` start from what `y: [m, outputs]` holds.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn add_product(x: Matrix, weight: Weight, y: &mut [f32]) {
    add_product_at(x, weight, y, weight.outputs(), 0);
}

/// [`add_product`] to the columns of `y` from `column` on, rows of `y` being `width` apart.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn add_product_at(x: Matrix, weight: Weight, y: &mut [f32], width: usize, column: usize) {
    let y = Destination::new(as_uninit(y), width).right(column);
    fill(x, &[weight], y, Write::Add);
}

fn fill(x: Matrix, weights: &[Weight], y: Destination, write: Write) {
    let count = x.height().div_ceil(LANES);
    let many = x.height() > FEW_ROWS || count * x.width() > kernel::FEW;
    if many || Arithmetic::current() != Arithmetic::Chains {
        return fill_from(x, None, weights, y, write);
    }
    // Few rows are packed once for all pieces.
    with_buffer(&PANELS, |packed| {
        let lines = count * x.width();
        if packed.len() < lines {
            packed.resize(lines, Line::default());
        }
        // SAFETY: it asks for instructions alone.
        unsafe { kernel::pack_few(x, &mut packed[..lines]) };
        fill_from(x, Some(packed), weights, y, write);
    });
}

fn fill_from(
    x: Matrix,
    rows: Option<&[Line]>,
    weights: &[Weight],
    mut y: Destination,
    write: Write,
) {
    if let Some(matrices) = side_by_side(weights) {
        return fill_joined(x, rows, &matrices, y, write);
    }
    let mut packed = Vec::new();
    for weight in weights {
        match weight {
            Weight::Panels(panels) => packed.push((panels.factor(), y)),
            Weight::Rows(weight) => multiply_at(x, weight.t(), y, write, Threads::All),
        }
        y = y.right(weight.outputs());
    }
    let pieces = pieces(x, rows, &packed, write, Threads::All);
    // SAFETY: the pieces of one weight are disjoint, and so are the columns of the weights.
    unsafe { run(&pieces, Threads::All) };
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
    x: Matrix,
    rows: Option<&[Line]>,
    matrices: &[Matrix],
    y: Destination,
    write: Write,
) {
    let columns = matrices.iter().map(Matrix::height).sum();
    let layout = Layout::native();
    with_buffer(&PANELS, |packed| {
        for matrix in matrices {
            assert_eq!(matrix.width(), x.width(), "inner sizes of a product");
        }
        matrix::pack_all(matrices, layout, packed, Threads::All);
        let b = Factor::packed(packed, layout, x.width(), columns);
        let pieces = pieces(x, rows, &[(b, y)], write, Threads::All);
        // SAFETY: the pieces are disjoint.
        unsafe { run(&pieces, Threads::All) };
    });
}

/// `a · b`.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn multiplied(a: Matrix, b: Matrix) -> Vec<f32> {
    let width = b.width();
    let write = |c: &mut [MaybeUninit<f32>]| {
        multiply_at(a, b, Destination::new(c, width), Write::Set, Threads::All);
    };
    // SAFETY: every column of every row is set.
    unsafe { storage::written(a.height() * width, write) }
}

/// `a · b` for a `b` that is several matrices one below the other.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn multiplied_stacked(a: Matrix, parts: &[Matrix]) -> Vec<f32> {
    let width = parts.first().map_or(0, Matrix::width);
    let rows: usize = parts.iter().map(Matrix::height).sum();
    assert_eq!(a.width(), rows, "inner sizes of a product");
    let write = |c: &mut [MaybeUninit<f32>]| {
        let c = Destination::new(c, width);
        let (layout, before) = (Layout::native(), &parts[..parts.len().saturating_sub(1)]);
        match rows * width <= PACKED && before.iter().all(|part| layout.can_be_cut(part.height())) {
            true => multiply_joined(a, parts, layout, c),
            false => multiply_in_turn(a, parts, c),
        }
    };
    // SAFETY: every column of every row is set.
    unsafe { storage::written(a.height() * width, write) }
}

fn multiply_joined(a: Matrix, parts: &[Matrix], layout: Layout, c: Destination) {
    let width = parts.first().map_or(0, Matrix::width);
    with_buffer(&PANELS, |packed| {
        matrix::pack_stacked(parts, layout, packed);
        let b = Factor::packed(packed, layout, a.width(), width);
        let pieces = pieces(a, None, &[(b, c)], Write::Set, Threads::All);
        // SAFETY: the pieces are disjoint.
        unsafe { run(&pieces, Threads::All) };
    });
}

/// The sum of each element goes on from part to part through memory. That changes no bit of a chain, nor of what the matrix unit adds
/// up where the parts can be packed together.
fn multiply_in_turn(a: Matrix, parts: &[Matrix], c: Destination) {
    let (mut column, mut write) = (0, Write::Set);
    for part in parts {
        let columns = a.columns(column..column + part.height());
        multiply_at(columns, *part, c, write, Threads::All);
        (column, write) = (column + part.height(), Write::Add);
    }
}

/// `c = a · b` or `c += a · b`, rows of `c` being `stride` apart.
///
/// # Panics
/// If the shapes disagree or `c` is too short: a bug of the caller.
pub fn multiply(
    a: Matrix,
    b: Matrix,
    c: &mut [f32],
    stride: usize,
    write: Write,
    threads: Threads,
) {
    multiply_at(a, b, Destination::new(as_uninit(c), stride), write, threads);
}

/// Elements that will only be written, or read after others were written there.
pub(crate) fn as_uninit(data: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the layouts are one, and nothing in this module writes what is not a number.
    unsafe { &mut *(std::ptr::from_mut(data) as *mut [MaybeUninit<f32>]) }
}

/// Packs a part of `b` at a time: some of its rows, and of these some columns.
fn multiply_at(a: Matrix, b: Matrix, c: Destination, write: Write, threads: Threads) {
    assert_eq!(a.width(), b.height(), "inner sizes of a product");
    let (n, k) = (b.width(), a.width());
    let depth = (PACKED / n.max(1)).clamp(LEAST_DEPTH, k.max(LEAST_DEPTH));
    // There every layout can be cut, so that sums have one order however the right-hand side is packed.
    let depth = depth.next_multiple_of(LEAST_DEPTH);
    let layout = Layout::native();
    let step = (PACKED / depth.min(k).max(1)).next_multiple_of(TILE_PANELS * LANES);
    with_buffer(&PANELS, |packed| {
        let mut write = write;
        for start in (0..k.max(1)).step_by(depth) {
            let inputs = start..k.min(start + depth);
            let (a, b) = (a.columns(inputs.clone()), b.rows(start, inputs.len()).t());
            for first in (0..n).step_by(step) {
                let part = b.rows(first, step.min(n - first));
                matrix::pack_all(&[part], layout, packed, threads);
                let b = Factor::packed(packed, layout, part.width(), part.height());
                let pieces = pieces(a, None, &[(b, c.right(first))], write, threads);
                // SAFETY: the pieces are disjoint.
                unsafe { run(&pieces, threads) };
            }
            write = Write::Add;
        }
    });
}

/// Cuts the products of `a` with several right-hand sides, each with its destination, by rows and panels as if those were one. What
/// a piece has of each is a task of its own.
fn pieces<'a>(
    a: Matrix<'a>,
    packed: Option<&'a [Line]>,
    sides: &[(Factor<'a>, Destination<'a>)],
    write: Write,
    threads: Threads,
) -> Vec<Vec<Task<'a>>> {
    let (m, k) = (a.height(), a.width());
    let room = |b: &Factor| b.width().next_multiple_of(LANES);
    let columns: usize = sides.iter().map(|(b, _)| room(b)).sum();
    for (b, c) in sides {
        assert_eq!(k, b.height(), "inner sizes of a product");
        c.check(m, b.width());
    }
    if m == 0 || columns == 0 {
        return Vec::new();
    }
    let grid = Grid::new(m, columns, k, threads);
    let piece = |i| {
        let (row, column) = grid.piece(i);
        let mut before = 0;
        let task = |(b, c): &(Factor<'a>, Destination<'a>)| {
            let columns = share(column..column + grid.columns, before, b.width());
            before += room(b);
            (!columns.is_empty()).then(|| Task {
                a: a.rows(row, grid.rows.min(m - row)),
                // Rows that were packed beforehand are few, and not cut.
                rows: packed.map_or(Rows::OnTheWay, Rows::Packed),
                b: b.columns(columns.clone()),
                c: c.below(row).right(columns.start),
                write,
            })
        };
        sides.iter().filter_map(task).collect()
    };
    (0..grid.count()).map(piece).collect()
}

/// Runs pieces, in any order; the tasks of one are one thread's.
///
/// # Safety
/// They must write disjoint elements of live matrices that nobody else touches meanwhile.
unsafe fn run(pieces: &[Vec<Task>], threads: Threads) {
    let arithmetic = Arithmetic::current();
    // SAFETY: the caller's; an arithmetic is current only where the processor has what it takes.
    let one = |i: usize| with_buffer(&ROWS, |rows| unsafe { arithmetic.run(&pieces[i], rows) });
    match threads {
        Threads::Caller => (0..pieces.len()).for_each(one),
        Threads::All => pool::run(pieces.len(), &one),
    }
}

#[cfg(test)]
mod tests;
