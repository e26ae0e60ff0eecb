//! Matrix products: `y = x · Wᵀ` forward, in training and in decode, and the products of the backward pass.
//!
//! Every output element is a single chain of fused multiply-adds over `k` in ascending order, starting from zero (or, where a
//! product is added, from what the destination holds). Tiles, panels, threads and the number of rows only choose *which* elements
//! are computed together, never the order inside one, so a row has the same bits alone, in any batch and on any CPU. This is what
//! makes the generator's log-probs equal to the training forward's; the generic `gemm` crate changes its order with the shape.
//!
//! Both operands are read in [`pack`]ed form (Goto and van de Geijn 2008). The generator packs weights once per rollout
//! ([`Panels`]); a training pass has so many rows that packing on the way costs less than holding a second copy.

mod kernel;
mod lanes;
mod matrix;
mod pack;

use std::cell::Cell;

use super::pool;
use kernel::{Destination, Task};
pub use lanes::LANES;
use lanes::Line;
pub use matrix::{Matrix, Panels};

/// Rows of one task when the rows are many: packed, a depth of them fits the second-level cache.
const ROW_BLOCK: usize = 96;
/// Panels of a register tile; tasks take whole tiles.
const TILE_PANELS: usize = 3;
/// Elements that are packed on the way before they are used: about what the caches hold.
const PACKED: usize = 1 << 20;
/// Multiply-adds below which a task is not worth handing over.
const LEAST_WORK: usize = 1 << 17;

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

/// `y[:, at..at + outputs] = x · Wᵀ` for weights side by side, for `x: [m, k]` and a row-major `y: [m, width]`.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn product(x: Matrix, weights: &[Weight], y: &mut [f32], width: usize, at: usize) {
    let (mut column, mut packed) = (at, Vec::new());
    for weight in weights {
        let outputs = weight.outputs();
        assert!(
            column + outputs <= width,
            "outputs of a product past the row"
        );
        let start = column.min(y.len());
        let window = &mut y[start..];
        match weight {
            Weight::Panels(panels) => {
                assert_eq!(panels.inputs(), x.width(), "inner sizes of a product");
                let panels = (panels.data(), outputs);
                packed.extend(pieces(x, panels, window, width, Write::Set, Threads::All));
            }
            Weight::Rows(rows) => multiply(x, rows.t(), window, width, Write::Set, Threads::All),
        }
        column += outputs;
    }
    // SAFETY: the pieces of one weight are disjoint, and so are the columns of the weights; `y` is borrowed mutably.
    unsafe { run(packed, Threads::All) };
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
    assert_eq!(a.width(), b.height(), "inner sizes of a product");
    let (columns, k) = (b.t(), a.width());
    let step = (PACKED / k.max(1))
        .max(1)
        .next_multiple_of(TILE_PANELS * LANES);
    with_buffer(&PANELS, |packed| {
        for first in (0..columns.height()).step_by(step) {
            let part = columns.rows(first, step.min(columns.height() - first));
            matrix::pack_all(part, packed, threads);
            let start = first.min(c.len());
            let c = &mut c[start..];
            let tasks = pieces(a, (packed, part.height()), c, stride, write, threads);
            // SAFETY: the pieces are disjoint, and `c` is borrowed mutably.
            unsafe { run(tasks, threads) };
        }
    });
}

/// Cuts a product by rows and panels; panels come with the number of their columns.
fn pieces<'a>(
    a: Matrix<'a>,
    (panels, columns): (&'a [Line], usize),
    c: &mut [f32],
    stride: usize,
    write: Write,
    threads: Threads,
) -> Vec<Task<'a>> {
    let (m, k) = (a.height(), a.width());
    if m == 0 || columns == 0 {
        return Vec::new();
    }
    assert!(
        (m - 1) * stride + columns <= c.len(),
        "destination of a product is too short"
    );
    if k == 0 {
        clear(c, m, columns, stride, write);
        return Vec::new();
    }
    let c = Destination {
        at: c.as_mut_ptr(),
        stride,
    };
    let grid = Grid::new(m, columns, k, threads);
    let piece = |i| {
        let (row, column) = grid.piece(i);
        Task {
            a: a.rows(row, grid.rows.min(m - row)),
            panels: &panels[column / LANES * k..],
            columns: grid.columns.min(columns - column),
            // SAFETY: rows and columns lie inside the window, whose end was checked.
            c: unsafe { c.offset(row, column) },
            write,
        }
    };
    (0..grid.count()).map(piece).collect()
}

/// Runs tasks, in any order.
///
/// # Safety
/// They must write disjoint elements of live matrices that nobody else touches meanwhile.
unsafe fn run(tasks: Vec<Task>, threads: Threads) {
    // SAFETY: the caller's.
    let one = |i: usize| with_buffer(&ROWS, |scratch| unsafe { kernel::run(&tasks[i], scratch) });
    match threads {
        Threads::Caller => (0..tasks.len()).for_each(one),
        Threads::All => pool::run(tasks.len(), &one),
    }
}

/// What a product of no inputs leaves.
fn clear(c: &mut [f32], rows: usize, columns: usize, stride: usize, write: Write) {
    if write == Write::Set {
        (0..rows).for_each(|i| c[i * stride..][..columns].fill(0.0));
    }
}

/// How a product is cut into pieces of `rows × columns`.
struct Grid {
    rows: usize,
    columns: usize,
    across: usize,
    down: usize,
}

impl Grid {
    /// Pieces of equal size, enough for all threads, none too small.
    fn new(m: usize, n: usize, k: usize, threads: Threads) -> Self {
        let tile = TILE_PANELS * LANES;
        let blocks = m.div_ceil(ROW_BLOCK);
        let rows = m.div_ceil(blocks).next_multiple_of(LANES);
        let down = m.div_ceil(rows);
        let wanted = match threads {
            Threads::Caller => 1,
            Threads::All => (2 * pool::threads()).div_ceil(down),
        };
        let most = (m.saturating_mul(n).saturating_mul(k) / down / LEAST_WORK).max(1);
        let columns = n.div_ceil(wanted.min(most)).next_multiple_of(tile);
        Self {
            rows,
            columns,
            across: n.div_ceil(columns),
            down,
        }
    }

    fn count(&self) -> usize {
        self.across * self.down
    }

    /// First row and column of a piece.
    fn piece(&self, i: usize) -> (usize, usize) {
        (i / self.across * self.rows, i % self.across * self.columns)
    }
}

#[cfg(test)]
mod tests;
