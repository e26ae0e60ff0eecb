//! Backward of packed attention, after FlashAttention (Dao et al. 2022, algorithm 4): probabilities are recomputed a tile of
//! queries at a time, `dS = P ∘ (dO·Vᵀ − rowsum(dO ∘ O))`.
//!
//! A task is one key head of one segment, so the sums over a group's query heads need no locks and have one order.

use std::ops::Range;

use rollout::row;

use super::Attention;
use super::kernel::scatter_columns;
use crate::ops::pool;
use crate::ops::product::{Matrix, Threads, Write, multiply};

/// Query rows of one tile.
const TILE: usize = 64;

/// Gradients of one key head and its query heads: `[rows, group · head_dim]`, `[rows, head_dim]` twice.
struct Part {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// `[tokens, columns]` gradient of `q | k | v`.
pub fn run(
    spec: Attention,
    tasks: &[(Range<usize>, usize)],
    qkv: &[f32],
    out: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let (columns, outputs) = (spec.columns(), spec.outputs());
    let parts: Vec<Part> = pool::map(tasks, |(rows, head)| {
        let (a, b) = (rows.start, rows.end);
        let (qkv, outs) = (&qkv[a * columns..b * columns], a * outputs..b * outputs);
        Task {
            spec,
            head: *head,
            qkv,
            out: &out[outs.clone()],
            grad: &grad[outs],
        }
        .run()
    });
    let mut dqkv = vec![0f32; qkv.len()];
    for ((rows, head), part) in tasks.iter().zip(&parts) {
        let to = &mut dqkv[rows.start * columns..];
        let width = spec.group() * spec.head_dim;
        scatter_columns(&part.queries, width, to, columns, head * width);
        scatter_columns(
            &part.keys,
            spec.head_dim,
            to,
            columns,
            spec.key_column(*head),
        );
        scatter_columns(
            &part.values,
            spec.head_dim,
            to,
            columns,
            spec.value_column(*head),
        );
    }
    dqkv
}

/// Probabilities and the gradients of the scores of one tile.
struct Scores {
    p: Vec<f32>,
    ds: Vec<f32>,
}

struct Tile<'a> {
    /// Which query head of the group.
    member: usize,
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
    fn run(&self) -> Part {
        let (rows, d) = (self.qkv.len() / self.spec.columns(), self.spec.head_dim);
        let group = self.spec.group();
        let mut part = Part {
            queries: vec![0.0; rows * group * d],
            keys: vec![0.0; rows * d],
            values: vec![0.0; rows * d],
        };
        let mut scores = Scores {
            p: vec![0f32; TILE * rows],
            ds: vec![0f32; TILE * rows],
        };
        for member in 0..group {
            for start in (0..rows).step_by(TILE) {
                let tile = self.tile(member, start..rows.min(start + TILE));
                self.probabilities(&tile, &mut scores);
                self.gradients(&tile, &scores, &mut part);
            }
        }
        part
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
            member,
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
    fn gradients(&self, tile: &Tile, scores: &Scores, part: &mut Part) {
        let (count, seen, d) = (tile.rows.len(), tile.seen(), self.spec.head_dim);
        let (width, alone) = (self.spec.group() * d, Threads::Caller);
        let p = Matrix::new(&scores.p, count, seen, seen);
        let ds = Matrix::new(&scores.ds, count, seen, seen);
        let queries = &mut part.queries[tile.rows.start * width + tile.member * d..];
        multiply(ds, tile.keys, queries, width, Write::Set, alone);
        let keys = &mut part.keys[tile.from * d..];
        multiply(ds.t(), tile.queries, keys, d, Write::Add, alone);
        let values = &mut part.values[tile.from * d..];
        multiply(p.t(), tile.grads, values, d, Write::Add, alone);
    }

    /// Scores → probabilities in `p`, and `dP` → `dS` in `ds`; zero outside `visible`.
    fn softmax_backward(&self, p: &mut [f32], ds: &mut [f32], visible: Range<usize>, delta: f32) {
        let scale = self.spec.scale;
        let scores = p[visible.clone()].to_vec();
        let stats = row::stats(&scores, scale);
        row::softmax(&scores, scale, &stats, &mut p[visible.clone()]);
        for (p, ds) in p[visible.clone()].iter().zip(&mut ds[visible.clone()]) {
            *ds = p * (*ds - delta) * scale;
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
