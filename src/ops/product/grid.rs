//! How a product is cut into tasks.

use super::lanes::LANES;
use super::{FEW_ROWS, Threads};
use crate::ops::pool;

/// Rows of one task when the rows are many: packed, a depth of them fits the second-level cache.
const ROW_BLOCK: usize = 192;
/// Rows of a register tile, at most.
const TILE_ROWS: usize = 8;
/// Rows of one task, at least, where they are many.
const LEAST_ROWS: usize = 16;
/// Pieces for each thread: so many that one who is late holds up little.
const PIECES: usize = 4;
/// Multiply-adds below which a task is not worth handing over.
const LEAST_WORK: usize = 1 << 17;

/// How a product is cut into pieces of `rows × columns`.
pub struct Grid {
    pub rows: usize,
    pub columns: usize,
    across: usize,
    down: usize,
}

impl Grid {
    /// Pieces of equal size, enough for all threads, none too small.
    pub fn new(m: usize, n: usize, k: usize, threads: Threads) -> Self {
        let wanted = match threads {
            Threads::Caller => 1,
            // Weights come from memory then, and the longer the runs the better.
            Threads::All if m <= FEW_ROWS => pool::threads(),
            Threads::All => PIECES * pool::threads(),
        };
        // Rows are packed once for each piece across, so it is cut by rows first.
        let rows = match m <= FEW_ROWS {
            true => m.next_multiple_of(TILE_ROWS),
            false => balanced(m, wanted),
        };
        let down = m.div_ceil(rows);
        let wanted = wanted.div_ceil(down);
        let most = (m.saturating_mul(n).saturating_mul(k) / down / LEAST_WORK).max(1);
        let columns = n.div_ceil(wanted.min(most)).next_multiple_of(LANES);
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

/// Rows of a piece where they are many: equal shares of whole tiles, a multiple of `pieces` of them if that leaves them tall enough.
pub fn balanced(m: usize, pieces: usize) -> usize {
    let blocks = m.div_ceil(ROW_BLOCK).next_multiple_of(pieces);
    m.div_ceil(blocks)
        .max(LEAST_ROWS)
        .next_multiple_of(TILE_ROWS)
}
