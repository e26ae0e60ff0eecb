//! Right-hand sides, as tasks read them.

use std::ops::Range;

use super::arithmetic::Arithmetic;
use super::grid::{Grid, share};
use super::kernel::{self, Rows, Task};
use super::lanes::{LANES, Line};
use super::layout::Layout;
use super::{
    Destination, FACTOR, Matrix, ROWS, Threads, Write, as_uninit, matrix, run, with_buffer,
};

/// A matrix `b`, or a window of one.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    source: Source<'a>,
    rows: usize,
    columns: usize,
}

/// Where a task finds a right-hand side.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// In panels.
    Packed {
        /// From the first panel on.
        panels: &'a [Line],
        layout: Layout,
        /// Lines from a panel to the next.
        lines: usize,
    },
    /// Where it lies. Only the matrix unit reads it so: parts are half as large again as what they are of, and where all of them are
    /// needed once, splitting them twice takes less than bringing them from one processor to the other.
    Unpacked(Matrix<'a>),
}

/// Lends `f` the right-hand side of gradients: packed in a buffer of this thread's for as long as `f` runs, if that pays.
pub fn with_factor<R>(b: Matrix, f: impl FnOnce(Factor) -> R) -> R {
    if Arithmetic::current() != Arithmetic::Chains {
        return f(Factor::unpacked(b));
    }
    with_buffer(&FACTOR, |panels| f(Factor::pack(b, panels, Threads::All)))
}

impl<'a> Factor<'a> {
    /// Packs `b` at the front of `panels`, for [`Self::multiply`].
    pub(crate) fn pack(b: Matrix, panels: &'a mut Vec<Line>, threads: Threads) -> Self {
        matrix::pack_all(&[b.t()], Layout::Lines, panels, threads);
        Self::packed(panels, Layout::Lines, b.height(), b.width())
    }

    /// What was packed, of so many rows and columns.
    ///
    /// # Panics
    /// If there are fewer panels: a bug of the caller.
    pub(super) fn packed(panels: &'a [Line], layout: Layout, rows: usize, columns: usize) -> Self {
        let lines = layout.lines(rows);
        assert!(
            columns.div_ceil(LANES) * lines <= panels.len(),
            "panels of a factor are too few"
        );
        Self {
            source: Source::Packed {
                panels,
                layout,
                lines,
            },
            rows,
            columns,
        }
    }

    fn unpacked(b: Matrix<'a>) -> Self {
        Self {
            source: Source::Unpacked(b),
            rows: b.height(),
            columns: b.width(),
        }
    }

    /// Number of rows: inputs of the product.
    pub(super) fn height(&self) -> usize {
        self.rows
    }

    /// Number of columns: outputs of the product; they may end inside the last panel.
    pub(super) fn width(&self) -> usize {
        self.columns
    }

    /// Where it is found.
    pub(super) fn source(&self) -> Source<'a> {
        self.source
    }

    /// The panels from the first on, and the lines from one to the next.
    ///
    /// # Panics
    /// If they are not of lines: a bug of the caller.
    pub(super) fn lines(&self) -> (&'a [Line], usize) {
        match self.source {
            Source::Packed {
                panels,
                layout: Layout::Lines,
                lines,
            } => (panels, lines),
            _ => panic!("chains read panels of lines"),
        }
    }

    /// Some of the rows, of panels of lines.
    ///
    /// # Panics
    /// If there are fewer, or the panels are not of lines: a bug of the caller.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.end <= self.rows, "rows of a factor out of bounds");
        let (panels, lines) = self.lines();
        let panels = &panels[rows.start.min(panels.len())..];
        Self {
            source: Source::Packed {
                panels,
                layout: Layout::Lines,
                lines,
            },
            rows: rows.len(),
            ..self
        }
    }

    /// Whole panels of columns; past the end of one that is packed they are zero.
    ///
    /// # Panics
    /// If there are fewer, or they begin inside a panel: a bug of the caller.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        let room = self.columns.next_multiple_of(LANES);
        assert!(
            columns.start.is_multiple_of(LANES) && columns.end <= room,
            "columns of a factor out of bounds"
        );
        let source = match self.source {
            Source::Packed {
                panels,
                layout,
                lines,
            } => Source::Packed {
                panels: &panels[(columns.start / LANES * lines).min(panels.len())..],
                layout,
                lines,
            },
            Source::Unpacked(b) => Source::Unpacked(b.columns(columns.clone())),
        };
        Self {
            source,
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
            b: self,
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

/// [`add_multiplied`] for several at once. They are cut as one product of all rows would be, so that every thread has as much to do.
///
/// # Panics
/// Likewise.
pub fn add_multiplied_all(products: Vec<GradientOf>, b: Factor) {
    let all = products.iter().map(|product| product.a.height()).sum();
    let grid = Grid::new(all, b.columns, b.rows, Threads::All);
    let mut pieces: Vec<Vec<Task>> = (0..grid.count()).map(|_| Vec::new()).collect();
    let mut before = 0;
    for GradientOf { a, c } in products {
        assert_eq!(a.width(), b.rows, "inner sizes of a product");
        let (m, c) = (a.height(), Destination::new(as_uninit(c), b.columns));
        c.check(m, b.columns);
        for (piece, tasks) in pieces.iter_mut().enumerate() {
            let (row, column) = grid.piece(piece);
            let rows = share(row..row + grid.rows, before, m);
            if !rows.is_empty() {
                tasks.push(Task {
                    a: a.rows(rows.start, rows.len()),
                    rows: Rows::OnTheWay,
                    b: b.columns(column..b.columns.min(column + grid.columns)),
                    c: c.below(rows.start).right(column),
                    write: Write::Add,
                });
            }
        }
        before += m;
    }
    // SAFETY: the tasks are disjoint, as the destinations are.
    unsafe { run(&pieces, Threads::All) };
}
