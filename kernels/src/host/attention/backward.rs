//! Backward pass of packed attention, after FlashAttention (Dao et al. 2022, algorithm 4):
//! probabilities are recomputed a tile of queries at a time, `dS = P ∘ (dO·Vᵀ − rowsum(dO ∘ O))`.
//!
//! A task is one key head of one segment, so the sums over a group's query heads need no locks and
//! have one order.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::host::row;
use multiversion::multiversion;

use crate::attention::Attention;
use crate::host::pool;
use crate::host::product::lanes::Line;
use crate::host::product::{Destination, Factor, LANES, Matrix, Threads, Write, as_uninit};
use crate::host::written::written;

/// Query rows of one tile.
const TILE: usize = 32;

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
            let task = HeadTask {
                spec,
                head: *head,
                qkv: &qkv[a * columns..b * columns],
                out: &out[outs.clone()],
                grad: &grad[outs],
            };
            // SAFETY: two tasks differ in their rows or in their heads.
            BUFFERS.with_borrow_mut(|scratch| unsafe { task.run(scratch, dqkv.below(a)) });
        });
    };
    // SAFETY: the tasks cover all rows, and all columns of these.
    unsafe { written(qkv.len(), write) }
}

thread_local! {
    static BUFFERS: RefCell<BackwardBuffers> = RefCell::default();
}

/// Buffers that the tasks of a thread share.
#[derive(Default)]
struct BackwardBuffers {
    scores: TileScores,
    keys: Vec<Line>,
    values: Vec<Line>,
    keys_by_token: Vec<Line>,
    queries: Vec<Line>,
    grads: Vec<Line>,
}

/// Probabilities, and gradients of the scores, of one tile, in rows of [`QueryTile::width`].
#[derive(Default)]
struct TileScores {
    p: Vec<f32>,
    ds: Vec<f32>,
}

/// Keys and values of a head, packed once for all tiles of queries.
struct PackedKeyValues<'a> {
    /// Kᵀ and Vᵀ: `[head_dim, tokens]`
    keys: Factor<'a>,
    values: Factor<'a>,
    /// K: `[tokens, head_dim]`
    keys_by_token: Factor<'a>,
}

struct QueryTile<'a> {
    /// Positions of the queries.
    rows: Range<usize>,
    /// The keys that some query of the tile sees, from the start of a panel.
    seen: Range<usize>,
    /// First column of the query head.
    column: usize,
    queries: Matrix<'a>,
    grads: Matrix<'a>,
}

impl QueryTile<'_> {
    /// Elements of a row of scores: whole panels and one line more. Without the line, rows that are
    /// read one below the other would compete for the same cache sets.
    fn width(&self) -> usize {
        self.seen.len().next_multiple_of(LANES) + LANES
    }
}

struct HeadTask<'a> {
    spec: Attention,
    head: usize,
    qkv: &'a [f32],
    out: &'a [f32],
    grad: &'a [f32],
}

impl HeadTask<'_> {
    /// The gradients of the head's queries, keys and values.
    ///
    /// # Safety
    /// No other thread may access these columns of the segment's rows of `to`.
    unsafe fn run(&self, scratch: &mut BackwardBuffers, to: Destination) {
        let rows = self.qkv.len() / self.spec.columns();
        if rows == 0 {
            return;
        }
        let BackwardBuffers {
            scores,
            keys,
            values,
            keys_by_token,
            queries,
            grads,
        } = scratch;
        for buffer in [&mut scores.p, &mut scores.ds] {
            let most = TILE * (rows.next_multiple_of(LANES) + LANES);
            if buffer.len() < most {
                buffer.resize(most, 0.0);
            }
        }
        let [key, value] = [
            self.spec.key_column(self.head),
            self.spec.value_column(self.head),
        ]
        .map(|column| self.matrix(0, rows, column));
        let seen = PackedKeyValues {
            keys: Factor::pack(key.t(), keys, Threads::Caller),
            values: Factor::pack(value.t(), values, Threads::Caller),
            keys_by_token: Factor::pack(key, keys_by_token, Threads::Caller),
        };
        // SAFETY: the caller's promise; keys and values are cleared before they are added to.
        unsafe {
            self.clear(rows, to);
            for member in 0..self.spec.group() {
                for start in (0..rows).step_by(TILE) {
                    let tile = self.tile(member, start..rows.min(start + TILE));
                    self.probabilities(&tile, &seen, scores);
                    let queries = Factor::pack(tile.queries, queries, Threads::Caller);
                    let grads = Factor::pack(tile.grads, grads, Threads::Caller);
                    self.gradients(&tile, &seen, [queries, grads], scores, to);
                }
            }
        }
    }

    /// Sets the gradients of the head's keys and values to zero.
    ///
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
                // SAFETY: the caller keeps this function's contract.
                unsafe { to.put(row, column + at, &zeros[..count]) };
            }
        }
    }

    /// A tile of queries of one query head, with the keys that it sees.
    fn tile(&self, member: usize, rows: Range<usize>) -> QueryTile<'_> {
        let (spec, count) = (&self.spec, rows.len());
        let column = (self.head * spec.group() + member) * spec.head_dim;
        let grads = &self.grad[rows.start * spec.outputs() + column..];
        QueryTile {
            queries: self.matrix(rows.start, count, column),
            grads: Matrix::new(grads, count, spec.head_dim, spec.outputs()),
            seen: spec.first_key(rows.start) / LANES * LANES..rows.end,
            rows,
            column,
        }
    }

    /// P and dS of a tile: `[queries, keys seen]` each, at the start of the buffers.
    fn probabilities(&self, tile: &QueryTile, seen: &PackedKeyValues, scores: &mut TileScores) {
        let TileScores { p, ds } = scores;
        let panels = tile.seen.start..tile.seen.end.next_multiple_of(LANES);
        let width = tile.width();
        let products = [
            (tile.queries, seen.keys, &mut *p),
            (tile.grads, seen.values, &mut *ds),
        ];
        for (a, b, to) in products {
            let to = Destination::new(as_uninit(to), width);
            // SAFETY: no other thread accesses this thread's buffer.
            unsafe { b.columns(panels.clone()).multiply(a, to, Write::Set) };
        }
        for (i, position) in tile.rows.clone().enumerate() {
            let visible =
                self.spec.first_key(position) - tile.seen.start..position + 1 - tile.seen.start;
            let row = i * width..i * width + panels.len();
            let (p, ds) = (&mut p[row.clone()], &mut ds[row]);
            self.softmax_backward(p, ds, visible, self.delta(position, tile.column));
        }
    }

    /// Adds a tile's share: dQ = dS·K, dK += dSᵀ·Q, dV += Pᵀ·dO.
    ///
    /// # Safety
    /// As [`Self::run`]; the gradients of keys and values must be initialised.
    unsafe fn gradients(
        &self,
        tile: &QueryTile,
        seen: &PackedKeyValues,
        [queries, grads]: [Factor; 2],
        scores: &TileScores,
        to: Destination,
    ) {
        let [p, ds] = [&scores.p, &scores.ds]
            .map(|scores| Matrix::new(scores, tile.rows.len(), tile.seen.len(), tile.width()));
        let dq = to.below(tile.rows.start).right(tile.column);
        let dk = to
            .below(tile.seen.start)
            .right(self.spec.key_column(self.head));
        let dv = to
            .below(tile.seen.start)
            .right(self.spec.value_column(self.head));
        // SAFETY: the caller keeps this function's contract.
        unsafe {
            let keys = seen.keys_by_token.rows(tile.seen.clone());
            keys.multiply(ds, dq, Write::Set);
            queries.multiply(ds.t(), dk, Write::Add);
            grads.multiply(p.t(), dv, Write::Add);
        }
    }

    /// Turns scores into probabilities in `p`, and `dP` into `dS` in `ds`; both are zero outside
    /// `visible`. Columns after it are computed too, because whole lines are faster.
    fn softmax_backward(&self, p: &mut [f32], ds: &mut [f32], visible: Range<usize>, delta: f32) {
        let scale = self.spec.scale;
        p[..visible.start].fill(0.0);
        ds[..visible.start].fill(0.0);
        p[visible.end..].fill(f32::NEG_INFINITY);
        let (p, ds) = (&mut p[visible.start..], &mut ds[visible.start..]);
        let normaliser = 1.0 / row::weights_in_place(p, scale).sum;
        score_gradients(p, ds, normaliser, delta, scale);
    }

    /// `rowsum(dO ∘ O)` of one query.
    fn delta(&self, position: usize, column: usize) -> f32 {
        let at = position * self.spec.outputs() + column;
        let row = at..at + self.spec.head_dim;
        let pairs = self.grad[row.clone()].iter().zip(&self.out[row]);
        pairs.map(|(g, o)| g * o).sum()
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

/// Turns weights `p` into probabilities, and `dP` in `ds` into `dS`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn score_gradients(p: &mut [f32], ds: &mut [f32], normaliser: f32, delta: f32, scale: f32) {
    for (p, ds) in p.iter_mut().zip(ds) {
        *p *= normaliser;
        *ds = *p * (*ds - delta) * scale;
    }
}
