//! The squares that a task works on in turn: some of its rows, and some of their inputs.

use std::ops::Range;

use super::super::factor::FactorSource;
use super::super::matrix::Matrix;
use super::super::parts::CHUNK;
use super::super::task::{FEW_ROWS, ProductTask};

/// Most inputs of a square.
const DEPTH: usize = 512;
/// Most rows of a square: their parts take a fifth of the second-level cache.
pub const ROWS: usize = 128;
/// Elements of an unpacked right-hand side that are split at once: their parts take a third of the
/// second-level cache.
const UNPACKED: usize = 1 << 17;
/// Fewest inputs of a square, however wide an unpacked right-hand side is.
const LEAST_DEPTH: usize = 64;

/// Some rows of a left-hand side, and some of their inputs.
pub struct Square {
    pub rows: Range<usize>,
    pub inputs: Range<usize>,
}

impl Square {
    /// The square's rows with all their inputs.
    pub fn of<'a>(&self, matrix: Matrix<'a>) -> Matrix<'a> {
        matrix.rows(self.rows.start, self.rows.len())
    }
}

/// Inputs of a task's squares: a multiple of [`CHUNK`], so that the order of sums does not depend
/// on it.
pub fn depth(task: &ProductTask) -> usize {
    let (rows, k) = (task.a.height(), task.a.width());
    let most = match task.b.source() {
        FactorSource::Unpacked(b) => (UNPACKED / b.width().max(1)).clamp(LEAST_DEPTH, DEPTH),
        FactorSource::Packed { .. } if rows <= FEW_ROWS => k,
        FactorSource::Packed { .. } => DEPTH,
    };
    let times = k.div_ceil(most.max(1)).max(1);
    k.div_ceil(times).next_multiple_of(CHUNK).max(CHUNK)
}

/// A task's squares, with the inputs of each row in ascending order. A task without inputs has one
/// too, because it sets its destination.
///
/// The longer side is the outer loop, so that little is read again along the shorter one. Where the
/// right-hand side is split a depth at a time, the rows are the inner loop.
pub fn squares(task: &ProductTask, depth: usize) -> impl Iterator<Item = Square> {
    let (rows, k) = (task.a.height(), task.a.width());
    let unpacked = matches!(task.b.source(), FactorSource::Unpacked(_));
    let down_first = unpacked || k > 2 * rows;
    let [down, along] = [rows.div_ceil(ROWS), k.div_ceil(depth).max(1)];
    (0..down * along).map(move |i| {
        let (row, input) = match down_first {
            true => (i % down * ROWS, i / down * depth),
            false => (i / along * ROWS, i % along * depth),
        };
        Square {
            rows: row..rows.min(row + ROWS),
            inputs: input..k.min(input + depth),
        }
    })
}
