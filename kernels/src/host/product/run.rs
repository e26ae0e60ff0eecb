//! Cuts products into tasks and runs these on the pool.

use super::chains;
use super::destination::{Destination, Write};
use super::factor::Factor;
use super::grid::{ProductGrid, overlap};
use super::kernel::ProductKernel;
use super::lanes::{LANES, Line};
use super::matrix::Matrix;
use super::task::{ProductTask, RowPacking};
use super::threads::{ROWS, Threads, with_buffer};
#[cfg(target_arch = "x86_64")]
use super::tiles;
use crate::host::pool;

/// A left-hand side `[m, k]` as the tasks of a product read it.
#[derive(Clone, Copy)]
pub struct LeftSide<'a> {
    /// The matrix.
    pub a: Matrix<'a>,
    /// The rows packed for chains beforehand, if there are few; these are not cut.
    pub packed: Option<&'a [Line]>,
}

impl<'a> From<Matrix<'a>> for LeftSide<'a> {
    fn from(a: Matrix<'a>) -> Self {
        Self { a, packed: None }
    }
}

/// Computes the products of `left` with several right-hand sides, each with its own destination.
///
/// # Safety
/// The destinations must be disjoint, no other thread may access them, and where products are added
/// they must be initialised.
pub unsafe fn multiply_sides(
    kernel: ProductKernel,
    left: LeftSide,
    sides: &[(Factor, Destination)],
    write: Write,
    threads: Threads,
) {
    let pieces = pieces(kernel, left, sides, write, threads);
    // SAFETY: the pieces of one side are disjoint, and so are the destinations of the sides.
    unsafe { run(kernel, &pieces, threads) };
}

/// Cuts the products by rows and panels as if the right-hand sides were one matrix. What a piece
/// has of each side is a task of its own.
fn pieces<'a>(
    kernel: ProductKernel,
    left: LeftSide<'a>,
    sides: &[(Factor<'a>, Destination<'a>)],
    write: Write,
    threads: Threads,
) -> Vec<Vec<ProductTask<'a>>> {
    let LeftSide { a, packed } = left;
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
    let grid = ProductGrid::new(kernel, m, columns, k, threads);
    let piece = |i| {
        let (row, column) = grid.piece(i);
        let mut before = 0;
        let task = |(b, c): &(Factor<'a>, Destination<'a>)| {
            let columns = overlap(column..column + grid.columns, before, b.width());
            before += room(b);
            (!columns.is_empty()).then(|| ProductTask {
                a: a.rows(row, grid.rows.min(m - row)),
                rows: packed.map_or(RowPacking::OnTheWay, RowPacking::Beforehand),
                b: b.columns(columns.clone()),
                c: c.below(row).right(columns.start),
                write,
            })
        };
        sides.iter().filter_map(task).collect()
    };
    (0..grid.count()).map(piece).collect()
}

/// Runs pieces in any order; the tasks of one piece run on one thread.
///
/// # Safety
/// The tasks must write disjoint elements of live matrices that no other thread accesses, and where
/// they add, these must be initialised.
pub unsafe fn run(kernel: ProductKernel, pieces: &[Vec<ProductTask>], threads: Threads) {
    let one = |i: usize| {
        // SAFETY: the caller's promise; a kernel other than chains exists only where the processor
        // can run it.
        with_buffer(&ROWS, |buffer| unsafe {
            match kernel {
                ProductKernel::Chains => {
                    pieces[i].iter().for_each(|task| chains::run(task, buffer));
                }
                #[cfg(target_arch = "x86_64")]
                ProductKernel::Tiles(_) => tiles::run(&pieces[i], buffer),
            }
        });
    };
    match threads {
        Threads::Caller => (0..pieces.len()).for_each(one),
        Threads::All => pool::run(pieces.len(), &one),
    }
}
