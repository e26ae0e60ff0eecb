//! Backward of packed attention, after FlashAttention (Dao et al. 2022, algorithm 4): probabilities are recomputed a tile of
//! queries at a time, `dS = P ∘ (dO·Vᵀ − rowsum(dO ∘ O))`.
//!
//! A task is one key head of one segment, so the sums over a group's query heads need no locks and have one order.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;
use rollout::row;

use super::Attention;
use super::kernel::scatter_columns;
use crate::ops::product::{Matrix, Write, multiply};

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
    let parts: Vec<Part> = tasks
        .par_iter()
        .map(|(rows, head)| {
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
        })
        .collect();
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
        let mut buffers = (vec![0f32; TILE * rows], vec![0f32; TILE * rows]);
        for member in 0..group {
            for start in (0..rows).step_by(TILE) {
                self.tile(
                    member,
                    start..rows.min(start + TILE),
                    &mut buffers,
                    &mut part,
                );
            }
        }
        part
    }

    /// One tile of queries of one query head against the keys that it sees.
    fn tile(
        &self,
        member: usize,
        rows: Range<usize>,
        buffers: &mut (Vec<f32>, Vec<f32>),
        part: &mut Part,
    ) {
        let (spec, d) = (&self.spec, self.spec.head_dim);
        let (from, count) = (spec.first_key(rows.start), rows.len());
        let seen = rows.end - from;
        let query_column = (self.head * spec.group() + member) * d;
        let queries = self.matrix(rows.start, count, query_column);
        let keys = self.matrix(from, seen, spec.key_column(self.head));
        let values = self.matrix(from, seen, spec.value_column(self.head));
        let grads = Matrix::new(
            &self.grad[rows.start * spec.outputs() + query_column..],
            count,
            d,
            spec.outputs(),
        );

        let (p, ds) = buffers;
        multiply(queries, keys.t(), p, seen, Write::Set, Parallelism::None);
        multiply(grads, values.t(), ds, seen, Write::Set, Parallelism::None);
        for (i, position) in rows.clone().enumerate() {
            let visible = spec.first_key(position) - from..position + 1 - from;
            let (p, ds) = (&mut p[i * seen..][..seen], &mut ds[i * seen..][..seen]);
            self.softmax_backward(p, ds, visible, self.delta(position, query_column));
        }
        let (p, ds) = (
            Matrix::new(p, count, seen, seen),
            Matrix::new(ds, count, seen, seen),
        );
        let to = &mut part.queries[rows.start * spec.group() * d + member * d..];
        multiply(
            ds,
            keys,
            to,
            spec.group() * d,
            Write::Set,
            Parallelism::None,
        );
        multiply(
            ds.t(),
            queries,
            &mut part.keys[from * d..],
            d,
            Write::Add,
            Parallelism::None,
        );
        multiply(
            p.t(),
            grads,
            &mut part.values[from * d..],
            d,
            Write::Add,
            Parallelism::None,
        );
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
