//! How a product is cut into tasks.

use std::ops::Range;

use super::kernel::ProductKernel;
use super::lanes::LANES;
use super::task::FEW_ROWS;
use super::threads::Threads;
use crate::host::pool;

/// Multiply-adds below which a task is not worth handing over.
const LEAST_WORK: usize = 1 << 17;

/// How a product is cut into pieces of `rows × columns`.
pub struct ProductGrid {
    pub rows: usize,
    pub columns: usize,
    across: usize,
    down: usize,
}

/// The part of `piece` that overlaps `size` rows or columns beginning after `before` others,
/// counted from their first.
pub fn overlap(piece: Range<usize>, before: usize, size: usize) -> Range<usize> {
    let [start, end] = [piece.start, piece.end].map(|at| at.saturating_sub(before).min(size));
    start..end
}

/// Sizes of pieces that suit a kernel.
struct PieceSizes {
    /// Pieces per thread: several, so that a late thread delays the others little; one where each
    /// piece splits its right-hand side again.
    pieces: usize,
    /// Most rows of a task when there are many: a depth of them, packed, fits the second-level
    /// cache.
    row_block: usize,
    /// Fewest rows of a task when there are many.
    least_rows: usize,
    /// Rows of a tile.
    rows: usize,
    /// Columns of a tile.
    columns: usize,
}

impl PieceSizes {
    fn of(kernel: ProductKernel) -> Self {
        match kernel {
            ProductKernel::Chains => Self {
                pieces: 4,
                row_block: 192,
                least_rows: 16,
                rows: 8,
                columns: LANES,
            },
            #[cfg(target_arch = "x86_64")]
            ProductKernel::Tiles(_) => Self {
                pieces: 1,
                row_block: 512,
                least_rows: 64,
                rows: 2 * LANES,
                columns: 2 * LANES,
            },
        }
    }

    /// Rows of a piece when there are many: equal shares of whole tiles. The number of shares is a
    /// multiple of `pieces` if that leaves them tall enough.
    fn balanced(&self, m: usize, pieces: usize) -> usize {
        let blocks = m.div_ceil(self.row_block).next_multiple_of(pieces);
        m.div_ceil(blocks)
            .max(self.least_rows)
            .next_multiple_of(self.rows)
    }
}

impl ProductGrid {
    /// Cuts a product `[m, k] · [k, n]` into pieces of equal size: enough for all threads, none too
    /// small.
    pub fn new(kernel: ProductKernel, m: usize, n: usize, k: usize, threads: Threads) -> Self {
        let sizes = PieceSizes::of(kernel);
        let wanted = match threads {
            Threads::Caller => 1,
            // Few rows read the weights from memory: the longer the runs, the better.
            Threads::All if m <= FEW_ROWS => pool::threads(),
            Threads::All => sizes.pieces * pool::threads(),
        };
        // Every piece across packs the rows again, so the product is cut by rows first.
        let rows = match m <= FEW_ROWS {
            true => m.next_multiple_of(sizes.rows),
            false => sizes.balanced(m, wanted),
        };
        let down = m.div_ceil(rows);
        let wanted = wanted.div_ceil(down);
        let most = (m.saturating_mul(n).saturating_mul(k) / down / LEAST_WORK).max(1);
        let columns = n.div_ceil(wanted.min(most));
        let columns = columns.next_multiple_of(sizes.columns);
        Self {
            rows,
            columns,
            across: n.div_ceil(columns),
            down,
        }
    }

    /// Number of pieces.
    pub fn count(&self) -> usize {
        self.across * self.down
    }

    /// First row and column of a piece.
    pub fn piece(&self, i: usize) -> (usize, usize) {
        (i / self.across * self.rows, i % self.across * self.columns)
    }
}
