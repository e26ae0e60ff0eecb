//! Products of the backward pass with one right-hand side in common: `dW += dyᵀ · x` of several
//! weights that read the same input.

use super::destination::{Destination, Write, as_uninit};
use super::factor::Factor;
use super::grid::{ProductGrid, overlap};
use super::kernel::ProductKernel;
use super::matrix::Matrix;
use super::run::run;
use super::task::{ProductTask, RowPacking};
use super::threads::{FACTOR, Threads, with_buffer};

/// The right-hand side of gradients, prepared for one kernel.
#[derive(Clone, Copy)]
pub struct GradientFactor<'a> {
    kernel: ProductKernel,
    factor: Factor<'a>,
}

/// Prepares `b` for [`GradientFactor::add_to`] and lends it to `f`: packed in a buffer of this
/// thread if that pays.
pub fn with_factor<R>(kernel: ProductKernel, b: Matrix, f: impl FnOnce(GradientFactor) -> R) -> R {
    if kernel != ProductKernel::Chains {
        let factor = Factor::unpacked(b);
        return f(GradientFactor { kernel, factor });
    }
    with_buffer(&FACTOR, |panels| {
        let factor = Factor::pack(b, panels, Threads::All);
        f(GradientFactor { kernel, factor })
    })
}

/// One of several products with the same factor: `c += a · b`.
pub struct GradientOf<'a> {
    /// `[rows, b's rows]`
    pub a: Matrix<'a>,
    /// `[rows, b's columns]`
    pub c: &'a mut [f32],
}

impl GradientFactor<'_> {
    /// `c += a · b` for a `c` as wide as `b`.
    ///
    /// # Panics
    /// If the shapes disagree: a bug of the caller.
    pub fn add_to(&self, a: Matrix, c: &mut [f32]) {
        self.add_to_all(vec![GradientOf { a, c }]);
    }

    /// [`Self::add_to`] for several products at once. They are cut as one product of all rows would
    /// be, so that every thread has as much work.
    ///
    /// # Panics
    /// If the shapes disagree: a bug of the caller.
    pub fn add_to_all(&self, products: Vec<GradientOf>) {
        let b = self.factor;
        let all = products.iter().map(|product| product.a.height()).sum();
        let grid = ProductGrid::new(self.kernel, all, b.width(), b.height(), Threads::All);
        let mut pieces: Vec<Vec<ProductTask>> = (0..grid.count()).map(|_| Vec::new()).collect();
        let mut before = 0;
        for GradientOf { a, c } in products {
            assert_eq!(a.width(), b.height(), "inner sizes of a product");
            let (m, c) = (a.height(), Destination::new(as_uninit(c), b.width()));
            c.check(m, b.width());
            for (piece, tasks) in pieces.iter_mut().enumerate() {
                let (row, column) = grid.piece(piece);
                let rows = overlap(row..row + grid.rows, before, m);
                if !rows.is_empty() {
                    tasks.push(ProductTask {
                        a: a.rows(rows.start, rows.len()),
                        rows: RowPacking::OnTheWay,
                        b: b.columns(column..b.width().min(column + grid.columns)),
                        c: c.below(rows.start).right(column),
                        write: Write::Add,
                    });
                }
            }
            before += m;
        }
        // SAFETY: the tasks are disjoint, as the destinations are, and slices are initialised.
        unsafe { run(self.kernel, &pieces, Threads::All) };
    }
}
