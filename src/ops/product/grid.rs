//! How a product is cut into tasks.

use std::ops::Range;

use super::arithmetic::Arithmetic;
use super::lanes::LANES;
use super::{FEW_ROWS, Threads};
use crate::ops::pool;

/// Multiply-adds below which a task is not worth handing over.
const LEAST_WORK: usize = 1 << 17;

/// How a product is cut into pieces of `rows × columns`.
pub struct Grid {
    pub rows: usize,
    pub columns: usize,
    across: usize,
    down: usize,
}

/// What lies in `piece` of `size` rows or columns that begin after `before` others.
pub fn share(piece: Range<usize>, before: usize, size: usize) -> Range<usize> {
    let [start, end] = [piece.start, piece.end].map(|at| at.saturating_sub(before).min(size));
    start..end
}

/// What suits an arithmetic.
struct Sizes {
    /// Pieces for each thread: so many that one who is late holds up little, or one where each piece splits its right-hand side anew.
    pieces: usize,
    /// Rows of one task when the rows are many: packed, a depth of them fits the second-level cache.
    row_block: usize,
    /// Rows of one task, at least, where they are many.
    least_rows: usize,
    /// Rows of a tile.
    rows: usize,
    /// Columns of a tile.
    columns: usize,
}

impl Sizes {
    fn new() -> Self {
        match Arithmetic::current() {
            Arithmetic::Chains => Self {
                pieces: 4,
                row_block: 192,
                least_rows: 16,
                rows: 8,
                columns: LANES,
            },
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Tiles => Self {
                pieces: 1,
                row_block: 512,
                least_rows: 64,
                rows: 2 * LANES,
                columns: 2 * LANES,
            },
        }
    }

    /// Rows of a piece where they are many: equal shares of whole tiles, a multiple of `pieces` of them if that leaves them tall enough.
    fn balanced(&self, m: usize, pieces: usize) -> usize {
        let blocks = m.div_ceil(self.row_block).next_multiple_of(pieces);
        m.div_ceil(blocks)
            .max(self.least_rows)
            .next_multiple_of(self.rows)
    }
}

impl Grid {
    /// Pieces of equal size, enough for all threads, none too small.
    pub fn new(m: usize, n: usize, k: usize, threads: Threads) -> Self {
        let sizes = Sizes::new();
        let wanted = match threads {
            Threads::Caller => 1,
            // Weights come from memory then, and the longer the runs the better.
            Threads::All if m <= FEW_ROWS => pool::threads(),
            Threads::All => sizes.pieces * pool::threads(),
        };
        // Rows are packed once for each piece across, so it is cut by rows first.
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

    pub fn count(&self) -> usize {
        self.across * self.down
    }

    /// First row and column of a piece.
    pub fn piece(&self, i: usize) -> (usize, usize) {
        (i / self.across * self.rows, i % self.across * self.columns)
    }
}
