//! Products that a task of another operation computes itself: chains, on the calling thread.

use super::chains;
use super::destination::{Destination, Write};
use super::factor::Factor;
use super::lanes::Line;
use super::matrix::Matrix;
use super::panel_layout::PanelLayout;
use super::panels::pack_all;
use super::task::{ProductTask, RowPacking};
use super::threads::{ROWS, Threads, with_buffer};

impl<'a> Factor<'a> {
    /// Packs `b` at the front of `panels` for [`Self::multiply`].
    pub(crate) fn pack(b: Matrix, panels: &'a mut Vec<Line>, threads: Threads) -> Self {
        pack_all(&[b.t()], PanelLayout::Lines, panels, threads);
        Self::packed(panels, PanelLayout::Lines, b.height(), b.width())
    }

    /// `c = a · b` or `c += a · b`, where `b` is this factor. If neighbours in a column of `a` are
    /// neighbours in memory, `a` is read without packing it.
    ///
    /// # Safety
    /// No other thread may access the window of `c` that `a`'s rows and this factor's columns
    /// cover; where the product is added, the window must be initialised.
    pub(crate) unsafe fn multiply(self, a: Matrix, c: Destination, write: Write) {
        assert_eq!(a.width(), self.height(), "inner sizes of a product");
        let task = ProductTask {
            a,
            rows: match a.strides() {
                [1, _] => RowPacking::InPlace,
                _ => RowPacking::OnTheWay,
            },
            b: self,
            c,
            write,
        };
        // SAFETY: the caller's promise for the destination is that of a task.
        with_buffer(&ROWS, |rows| unsafe { chains::run(&task, rows) });
    }
}
