//! Backward of packed attention, after FlashAttention (Dao et al. 2022, algorithm 4): probabilities are recomputed a tile of
//! queries at a time, `dS = P ∘ (dO·Vᵀ − rowsum(dO ∘ O))`.
//!
//! A task is one key head of one segment, so the sums over a group's query heads need no locks and have one order.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use rollout::row;

use super::Attention;
use crate::ops::pool;
use crate::ops::product::{Destination, LANES, Matrix, Threads, Write, multiply, multiply_into};
use crate::ops::storage;

/// Query rows of one tile.
const TILE: usize = 64;

/// `[tokens, columns]` gradient of `q | k | v`.
pub fn run(
    spec: Attention,
    tasks: &[(Range<usize>, usize)],
    qkv: &[f32],
    out: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let (columns, outputs) = (spec.columns(), spec.outputs());
    let write = |dqkv: &mut [MaybeUninit<f32>]| {
        let dqkv = Destination::new(dqkv, columns);
        pool::for_each(tasks, |(rows, head)| {
            let (a, b) = (rows.start, rows.end);
            let outs = a * outputs..b * outputs;
            let task = Task {
                spec,
                head: *head,
                qkv: &qkv[a * columns..b * columns],
                out: &out[outs.clone()],
                grad: &grad[outs],
            };
            // SAFETY: tasks differ in their rows or their heads.
            SCORES.with_borrow_mut(|scores| unsafe { task.run(scores, dqkv.below(a)) });
        });
    };
    // SAFETY: the tasks' rows and the columns of their heads are all.
    unsafe { storage::written(qkv.len(), write) }
}

thread_local! {
    static SCORES: RefCell<Scores> = const { RefCell::new(Scores { p: Vec::new(), ds: Vec::new() }) };
}

/// Probabilities and the gradients of the scores of one tile.
struct Scores {
    p: Vec<f32>,
    ds: Vec<f32>,
}

struct Tile<'a> {
    /// Positions of the queries.
    rows: Range<usize>,
    /// Position of the first key that one of them sees.
    from: usize,
    /// First column of the query head.
    column: usize,
    queries: Matrix<'a>,
    keys: Matrix<'a>,
    values: Matrix<'a>,
    grads: Matrix<'a>,
}

impl Tile<'_> {
    /// Number of keys.
    fn seen(&self) -> usize {
        self.rows.end - self.from
    }
}

struct Task<'a> {
    spec: Attention,
    head: usize,
    qkv: &'a [f32],
    out: &'a [f32],
    grad: &'a [f32],
}

impl Task<'_> {
    /// The gradients of the head's queries, keys and values.
    ///
    /// # Safety
    /// Nobody else may touch their columns of the segment's rows of `to` meanwhile.
    unsafe fn run(&self, scores: &mut Scores, to: Destination) {
        let rows = self.qkv.len() / self.spec.columns();
        for buffer in [&mut scores.p, &mut scores.ds] {
            if buffer.len() < TILE * rows {
                buffer.resize(TILE * rows, 0.0);
            }
        }
        // SAFETY: the caller's; keys and values are cleared before they are added to.
        unsafe {
            self.clear(rows, to);
            for member in 0..self.spec.group() {
                for start in (0..rows).step_by(TILE) {
                    let tile = self.tile(member, start..rows.min(start + TILE));
                    self.probabilities(&tile, scores);
                    self.gradients(&tile, scores, to);
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::run`].
    unsafe fn clear(&self, rows: usize, to: Destination) {
        let zeros = [0f32; LANES];
        for column in [
            self.spec.key_column(self.head),
            self.spec.value_column(self.head),
        ] {
            for (row, at) in (0..rows).flat_map(|row| {
                (0..self.spec.head_dim)
                    .step_by(LANES)
                    .map(move |at| (row, at))
            }) {
                let count = LANES.min(self.spec.head_dim - at);
                // SAFETY: the caller's.
                unsafe { to.put(row, column + at, &zeros[..count]) };
            }
        }
    }

    /// One tile of queries of one query head, and the keys that it sees.
    fn tile(&self, member: usize, rows: Range<usize>) -> Tile<'_> {
        let (spec, d) = (&self.spec, self.spec.head_dim);
        let (from, count) = (spec.first_key(rows.start), rows.len());
        let seen = rows.end - from;
        let column = (self.head * spec.group() + member) * d;
        let grads = &self.grad[rows.start * spec.outputs() + column..];
        Tile {
            queries: self.matrix(rows.start, count, column),
            keys: self.matrix(from, seen, spec.key_column(self.head)),
            values: self.matrix(from, seen, spec.value_column(self.head)),
            grads: Matrix::new(grads, count, d, spec.outputs()),
            rows,
            from,
            column,
        }
    }

    /// P and dS of a tile: `[queries, keys seen]` each, at the buffers' start.
    fn probabilities(&self, tile: &Tile, scores: &mut Scores) {
        let (seen, alone) = (tile.seen(), Threads::Caller);
        let Scores { p, ds } = scores;
        multiply(tile.queries, tile.keys.t(), p, seen, Write::Set, alone);
        multiply(tile.grads, tile.values.t(), ds, seen, Write::Set, alone);
        for (i, position) in tile.rows.clone().enumerate() {
            let visible = self.spec.first_key(position) - tile.from..position + 1 - tile.from;
            let (p, ds) = (&mut p[i * seen..][..seen], &mut ds[i * seen..][..seen]);
            self.softmax_backward(p, ds, visible, self.delta(position, tile.column));
        }
    }

    /// Adds a tile's share: dQ = dS·K, dK += dSᵀ·Q, dV += Pᵀ·dO.
    ///
    /// # Safety
    /// As [`Self::run`], and keys and values must hold numbers.
    unsafe fn gradients(&self, tile: &Tile, scores: &Scores, to: Destination) {
        let (count, seen) = (tile.rows.len(), tile.seen());
        let p = Matrix::new(&scores.p, count, seen, seen);
        let ds = Matrix::new(&scores.ds, count, seen, seen);
        let queries = to.below(tile.rows.start).right(tile.column);
        let keys = to.below(tile.from).right(self.spec.key_column(self.head));
        let values = to.below(tile.from).right(self.spec.value_column(self.head));
        // SAFETY: the caller's.
        unsafe {
            multiply_into(ds, tile.keys, queries, Write::Set);
            multiply_into(ds.t(), tile.queries, keys, Write::Add);
            multiply_into(p.t(), tile.grads, values, Write::Add);
        }
    }

    /// Scores → probabilities in `p`, and `dP` → `dS` in `ds`; zero outside `visible`.
    fn softmax_backward(&self, p: &mut [f32], ds: &mut [f32], visible: Range<usize>, delta: f32) {
        let scale = self.spec.scale;
        let weights = &mut p[visible.clone()];
        let normaliser = 1.0 / row::weights_in_place(weights, scale).sum;
        for (p, ds) in weights.iter_mut().zip(&mut ds[visible.clone()]) {
            *p *= normaliser;
            *ds = *p * (*ds - delta) * scale;
        }
        for edge in [0..visible.start, visible.end..p.len()] {
            p[edge.clone()].fill(0.0);
            ds[edge].fill(0.0);
        }
    }

    /// `rowsum(dO ∘ O)` of one query.
    fn delta(&self, position: usize, column: usize) -> f32 {
        let at = position * self.spec.outputs() + column;
        let row = at..at + self.spec.head_dim;
        self.grad[row.clone()]
            .iter()
            .zip(&self.out[row])
            .map(|(g, o)| g * o)
            .sum()
    }

    fn matrix(&self, row: usize, rows: usize, column: usize) -> Matrix<'_> {
        let columns = self.spec.columns();
        Matrix::new(
            &self.qkv[row * columns + column..],
            rows,
            self.spec.head_dim,
            columns,
        )
    }
}
