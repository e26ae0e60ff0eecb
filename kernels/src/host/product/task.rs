//! One task of a product: some rows of the left-hand side times neighbouring panels.

use super::destination::{Destination, Write};
use super::factor::{Factor, FactorSource};
use super::lanes::{LANES, Line};
use super::matrix::Matrix;

/// At most this many rows count as few: they are packed once (or their parts kept) for all inputs,
/// and never cut.
pub const FEW_ROWS: usize = 96;

/// How chains read the rows of a task's left-hand side.
#[derive(Clone, Copy)]
pub enum RowPacking<'a> {
    /// Packed before the task began.
    Beforehand(&'a [Line]),
    /// Packed by the task, a depth at a time.
    OnTheWay,
    /// Not packed: neighbours in a column are neighbours in memory, and the data is near enough
    /// that packing would cost more than it saves.
    InPlace,
}

/// Rows of `a` times neighbouring panels of `b`.
pub struct ProductTask<'a> {
    /// `[rows, k]`
    pub a: Matrix<'a>,
    /// How chains read the rows; the matrix unit splits them from where they are.
    pub rows: RowPacking<'a>,
    /// `[k, columns]`
    pub b: Factor<'a>,
    /// `[rows, columns]`
    pub c: Destination<'a>,
    /// Whether the product replaces `c` or is added to it.
    pub write: Write,
}

impl ProductTask<'_> {
    /// # Panics
    /// If panels or destination are too short: a bug of the caller.
    pub fn check(&self) {
        let (count, k) = (self.b.width().div_ceil(LANES), self.a.width());
        assert_eq!(k, self.b.height(), "inner sizes of a product");
        if let FactorSource::Packed {
            panels,
            layout,
            lines,
        } = self.b.source()
        {
            assert!(
                count == 0 || (count - 1) * lines + layout.lines(k) <= panels.len(),
                "panels of a product are too few"
            );
        }
        self.c.check(self.a.height(), self.b.width());
    }
}
