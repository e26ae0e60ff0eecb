//! What a task works on in turn: some of its rows, and some of their inputs.

use std::ops::Range;

use super::super::factor::Source;
use super::super::kernel::Task;
use super::super::matrix::Matrix;
use super::{CHUNK, FEW_ROWS};

/// Inputs of a square, at most.
const DEPTH: usize = 512;
/// Rows of a square, at most: their parts take a fifth of the second-level cache.
pub const ROWS: usize = 128;
/// Elements of a right-hand side that are split at once, where it is not packed: their parts take a third of the second-level cache.
const UNPACKED: usize = 1 << 17;
/// Inputs of a square, at least, however wide such a right-hand side is.
const LEAST_DEPTH: usize = 64;

/// Some rows of a left-hand side, and some of their inputs.
pub struct Square {
    pub rows: Range<usize>,
    pub inputs: Range<usize>,
}

impl Square {
    /// Its rows, whole.
    pub fn of<'a>(&self, matrix: Matrix<'a>) -> Matrix<'a> {
        matrix.rows(self.rows.start, self.rows.len())
    }
}

/// Inputs of a task's squares: a multiple of [`CHUNK`], or the order of sums would depend on it.
pub fn depth(task: &Task) -> usize {
    let (rows, k) = (task.a.height(), task.a.width());
    let most = match task.b.source() {
        Source::Unpacked(b) => (UNPACKED / b.width().max(1)).clamp(LEAST_DEPTH, DEPTH),
        Source::Packed { .. } if rows <= FEW_ROWS => k,
        Source::Packed { .. } => DEPTH,
    };
    let times = k.div_ceil(most.max(1)).max(1);
    k.div_ceil(times).next_multiple_of(CHUNK).max(CHUNK)
}

/// A task's squares; of each row, inputs in ascending order. A product of no inputs sets its destination too.
///
/// They go along the longer side last, so that what the shorter one reads again is little; and along the rows first where the
/// right-hand side is split a depth at a time.
pub fn squares(task: &Task, depth: usize) -> impl Iterator<Item = Square> {
    let (rows, k) = (task.a.height(), task.a.width());
    let unpacked = matches!(task.b.source(), Source::Unpacked(_));
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
