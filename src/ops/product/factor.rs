//! Right-hand sides that several products share, packed once.

use std::ops::Range;

use super::kernel::{self, Rows, Task};
use super::lanes::{LANES, Line};
use super::{
    Destination, FACTOR, Matrix, ROWS, Threads, Write, as_uninit, grid, matrix, run, with_buffer,
};

/// A matrix `b` in panels, or a window of one.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    panels: &'a [Line],
    /// Lines from a panel to the next.
    lines: usize,
    rows: usize,
    columns: usize,
}

/// Packs `b` in a buffer of this thread's for as long as `f` runs.
pub fn with_factor<R>(b: Matrix, f: impl FnOnce(Factor) -> R) -> R {
    with_buffer(&FACTOR, |panels| f(Factor::pack(b, panels, Threads::All)))
}

impl<'a> Factor<'a> {
    /// Packs `b` at the front of `panels`.
    pub(crate) fn pack(b: Matrix, panels: &'a mut Vec<Line>, threads: Threads) -> Self {
        matrix::pack_all(&[b.t()], panels, threads);
        Self {
            panels,
            lines: b.height(),
            rows: b.height(),
            columns: b.width(),
        }
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If there are fewer: a bug of the caller.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.end <= self.rows, "rows of a factor out of bounds");
        Self {
            panels: &self.panels[rows.start.min(self.panels.len())..],
            rows: rows.len(),
            ..self
        }
    }

    /// Whole panels of columns; past the matrix's end they are zero.
    ///
    /// # Panics
    /// If there are fewer, or they begin inside a panel: a bug of the caller.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        let room = self.columns.next_multiple_of(LANES);
        assert!(
            columns.start.is_multiple_of(LANES) && columns.end <= room,
            "columns of a factor out of bounds"
        );
        Self {
            panels: &self.panels[(columns.start / LANES * self.lines).min(self.panels.len())..],
            columns: columns.len(),
            ..self
        }
    }

    /// `c = a · b` or `c += a · b` on the calling thread; `a` is read where it lies if neighbours in a column are neighbours in memory.
    ///
    /// # Safety
    /// Nobody else may touch the window of `a`'s rows and this factor's columns meanwhile, and where it is added to it must hold numbers.
    pub(crate) unsafe fn multiply(self, a: Matrix, c: Destination, write: Write) {
        assert_eq!(a.width(), self.rows, "inner sizes of a product");
        let task = Task {
            a,
            rows: match a.strides() {
                [1, _] => Rows::InPlace,
                _ => Rows::OnTheWay,
            },
            panels: self.panels,
            lines: self.lines,
            columns: self.columns,
            c,
            write,
        };
        // SAFETY: the caller's.
        with_buffer(&ROWS, |rows| unsafe { kernel::run(&task, rows) });
    }
}

/// `c += a · b` for a `c` as wide as `b`.
///
/// # Panics
/// If the shapes disagree: a bug of the caller.
pub fn add_multiplied(a: Matrix, b: Factor, c: &mut [f32]) {
    add_multiplied_all(vec![GradientOf { a, c }], b);
}

/// One of several products with the same factor: `c += a · b`.
pub struct GradientOf<'a> {
    /// `[rows, b's rows]`
    pub a: Matrix<'a>,
    /// `[rows, b's columns]`
    pub c: &'a mut [f32],
}

/// [`add_multiplied`] for several at once, whose tasks are as large as those of one product of all rows.
///
/// # Panics
/// Likewise.
pub fn add_multiplied_all(products: Vec<GradientOf>, b: Factor) {
    let all = products.iter().map(|product| product.a.height()).sum();
    let grid = grid::Grid::new(all, b.columns, b.rows, Threads::All);
    let mut tasks = Vec::new();
    for GradientOf { a, c } in products {
        assert_eq!(a.width(), b.rows, "inner sizes of a product");
        let (m, c) = (a.height(), Destination::new(as_uninit(c), b.columns));
        c.check(m, b.columns);
        for row in (0..m).step_by(grid.rows) {
            for column in (0..b.columns).step_by(grid.columns) {
                tasks.push(Task {
                    a: a.rows(row, grid.rows.min(m - row)),
                    rows: Rows::OnTheWay,
                    panels: &b.panels[column / LANES * b.lines..],
                    lines: b.lines,
                    columns: grid.columns.min(b.columns - column),
                    c: c.below(row).right(column),
                    write: Write::Add,
                });
            }
        }
    }
    // SAFETY: the tasks are disjoint, as the destinations are.
    unsafe { run(tasks, Threads::All) };
}
