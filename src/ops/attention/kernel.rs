//! The inner kernel of attention: up to [`TILE`] query rows against keys and values that lie in blocks.
//!
//! A block holds [`LANES`] consecutive tokens of one key head: the keys as a column panel `[head_dim][LANES]`, then the values
//! as panels `[head_dim/LANES][LANES][LANES]`. Scores are one chain over the head's columns, the mix of values one chain over
//! the tokens from the first visible one, the softmax one fixed order counted from there too. A token that a row does not see
//! has weight zero, and adding `0 · v` changes no bit, so rows may be tiled in any way.

use std::ops::Range;

use multiversion::multiversion;
use rollout::row;

use super::Attention;
use crate::ops::product::LANES;

/// Query rows computed together.
pub const TILE: usize = 6;

impl Attention {
    /// Columns of a head's values, padded to whole panels.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Elements of one block of one key head.
    pub(crate) fn block_len(&self) -> usize {
        (self.head_dim + self.padded()) * LANES
    }

    /// Puts one token's key and value of one head into place `slot` of a block.
    pub(crate) fn write_token(&self, block: &mut [f32], slot: usize, key: &[f32], value: &[f32]) {
        let (keys, values) = block.split_at_mut(self.head_dim * LANES);
        for (to, &k) in keys.iter_mut().skip(slot).step_by(LANES).zip(key) {
            *to = k;
        }
        for (panel, part) in values
            .chunks_exact_mut(LANES * LANES)
            .zip(value.chunks(LANES))
        {
            panel[slot * LANES..][..part.len()].copy_from_slice(part);
        }
    }
}

/// The blocks of one key head in one segment.
pub struct Blocks {
    data: Vec<f32>,
    block_len: usize,
}

impl Blocks {
    /// Packs key head `head` of the rows of a segment.
    pub fn pack(spec: &Attention, qkv: &[f32], head: usize) -> Self {
        let (columns, block_len) = (spec.columns(), spec.block_len());
        let rows = qkv.len() / columns;
        let mut data = vec![0f32; rows.div_ceil(LANES) * block_len];
        for (i, row) in qkv.chunks_exact(columns).enumerate() {
            let key = &row[spec.key_column(head)..][..spec.head_dim];
            let value = &row[spec.value_column(head)..][..spec.head_dim];
            spec.write_token(
                &mut data[i / LANES * block_len..][..block_len],
                i % LANES,
                key,
                value,
            );
        }
        Self { data, block_len }
    }

    /// One slice a block.
    pub fn refs(&self) -> Vec<&[f32]> {
        self.data.chunks_exact(self.block_len.max(1)).collect()
    }
}

/// Buffers that calls share.
#[derive(Default)]
pub struct Scratch {
    scores: Vec<f32>,
    weights: Vec<f32>,
}

/// Query rows of one head; row `i` begins `i · stride` in.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// From the first row's first column on.
    pub data: &'a [f32],
    /// Distance of the rows.
    pub stride: usize,
}

/// Query rows at positions `rows`.
///
/// In training the rows are neighbours; with [`attend_same`] they are the heads of one token.
pub fn attend_rows(
    spec: &Attention,
    queries: Queries,
    rows: Range<usize>,
    blocks: &[&[f32]],
    scratch: &mut Scratch,
    out: Window,
) {
    let mut visible = [(0, 0); TILE];
    for (slot, position) in visible.iter_mut().zip(rows.clone()) {
        *slot = (spec.first_key(position), position + 1);
    }
    let tile = Tile {
        spec,
        queries,
        visible: &visible[..rows.len()],
        blocks,
    };
    attend_tile(&tile, scratch, out);
}

/// The query heads of one token at `position`; heads are `head_dim` apart in and out.
pub fn attend_same(
    spec: &Attention,
    queries: &[f32],
    position: usize,
    blocks: &[&[f32]],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let visible = [(spec.first_key(position), position + 1); TILE];
    let width = spec.head_dim;
    for (q, o) in queries
        .chunks(TILE * width)
        .zip(out.chunks_mut(TILE * width))
    {
        let tile = Tile {
            spec,
            queries: Queries {
                data: q,
                stride: width,
            },
            visible: &visible[..q.len() / width],
            blocks,
        };
        attend_tile(&tile, scratch, Window::new(o, width, 0, width));
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn attend_tile(tile: &Tile<'_>, scratch: &mut Scratch, out: Window<'_>) {
    match tile.visible.len() {
        1 => tile.run::<1>(scratch, out),
        2 => tile.run::<2>(scratch, out),
        3 => tile.run::<3>(scratch, out),
        4 => tile.run::<4>(scratch, out),
        5 => tile.run::<5>(scratch, out),
        6 => tile.run::<6>(scratch, out),
        _ => {}
    }
}

struct Tile<'a> {
    spec: &'a Attention,
    queries: Queries<'a>,
    /// First visible key and end of the visible keys, for each row.
    visible: &'a [(usize, usize)],
    blocks: &'a [&'a [f32]],
}

/// The keys that a tile computes with.
#[derive(Clone, Copy)]
struct Span {
    /// The first block.
    from: usize,
    /// Behind the last token.
    end: usize,
    /// Places in a row of scores, counted from the segment's start.
    width: usize,
}

impl Tile<'_> {
    #[inline(always)]
    fn run<const M: usize>(&self, scratch: &mut Scratch, out: Window) {
        let end = self.visible.iter().map(|v| v.1).max().unwrap_or(0);
        let span = Span {
            from: self.visible.iter().map(|v| v.0).min().unwrap_or(0) / LANES,
            end,
            width: end.next_multiple_of(LANES),
        };
        scratch.scores.resize(M * span.width, 0.0);
        scratch.weights.clear();
        scratch.weights.resize(M * span.width, 0.0);
        self.scores::<M>(span, &mut scratch.scores);
        let scales = self.softmax::<M>(span.width, &scratch.scores, &mut scratch.weights);
        self.mix::<M>(span, &scratch.weights, scales, out);
    }

    #[inline(always)]
    fn scores<const M: usize>(&self, span: Span, scores: &mut [f32]) {
        let Queries { data, stride } = self.queries;
        for b in span.from..span.end.div_ceil(LANES) {
            let mut acc = [[0f32; LANES]; M];
            chain(data, stride, self.spec.head_dim, self.blocks[b], &mut acc);
            for (i, row) in acc.iter().enumerate() {
                scores[i * span.width + b * LANES..][..LANES].copy_from_slice(row);
            }
        }
    }

    /// Unnormalised weights, zero where a row does not see; returns what each row is to be multiplied by.
    #[inline(always)]
    fn softmax<const M: usize>(
        &self,
        width: usize,
        scores: &[f32],
        weights: &mut [f32],
    ) -> [f32; M] {
        std::array::from_fn(|i| {
            let (from, to) = self.visible[i];
            let seen = &scores[i * width + from..i * width + to];
            let stats = row::stats(seen, self.spec.scale);
            row::weights(
                seen,
                self.spec.scale,
                stats.max,
                &mut weights[i * width + from..i * width + to],
            );
            1.0 / stats.sum
        })
    }

    #[inline(always)]
    fn mix<const M: usize>(&self, span: Span, weights: &[f32], scales: [f32; M], mut out: Window) {
        let head_dim = self.spec.head_dim;
        for (p, first) in (0..head_dim).step_by(LANES).enumerate() {
            let mut acc = [[0f32; LANES]; M];
            for b in span.from..span.end.div_ceil(LANES) {
                let panel = &self.blocks[b][(head_dim + p * LANES) * LANES..][..LANES * LANES];
                let tokens = LANES.min(span.end - b * LANES);
                chain(&weights[b * LANES..], span.width, tokens, panel, &mut acc);
            }
            let columns = LANES.min(head_dim - first);
            for (i, row) in acc.iter().enumerate() {
                out.row(i)[first..][..columns]
                    .iter_mut()
                    .zip(row)
                    .for_each(|(to, v)| *to = v * scales[i]);
            }
        }
    }
}

/// Where a kernel writes: columns `at..at + columns` of a row-major matrix whose rows are `stride` apart.
pub struct Window<'a> {
    data: &'a mut [f32],
    stride: usize,
    at: usize,
    columns: usize,
}

impl<'a> Window<'a> {
    /// `columns` columns from `at` on.
    #[inline(always)]
    pub fn new(data: &'a mut [f32], stride: usize, at: usize, columns: usize) -> Self {
        Self {
            data,
            stride,
            at,
            columns,
        }
    }

    /// The window's part of a row.
    #[inline(always)]
    fn row(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.stride + self.at..][..self.columns]
    }
}

/// Continues `M` × [`LANES`] chains: `acc[i][j] += x[i][p] · panel[p][j]` for `p = 0..k` in order, one fused
/// multiply-add each. Rows of `x` are `stride` apart.
#[inline(always)]
fn chain<const M: usize>(
    x: &[f32],
    stride: usize,
    k: usize,
    panel: &[f32],
    acc: &mut [[f32; LANES]; M],
) {
    let rows: [&[f32]; M] = std::array::from_fn(|i| &x[i * stride..i * stride + k]);
    let mut local = *acc;
    for (p, b) in panel.as_chunks::<LANES>().0.iter().enumerate().take(k) {
        for i in 0..M {
            let a = rows[i][p];
            for j in 0..LANES {
                local[i][j] = a.mul_add(b[j], local[i][j]);
            }
        }
    }
    *acc = local;
}

/// Copies rows of `width` into columns `at..at+width` of rows of `out_width`.
pub fn scatter_columns(part: &[f32], width: usize, out: &mut [f32], out_width: usize, at: usize) {
    for (from, to) in part.chunks_exact(width).zip(out.chunks_mut(out_width)) {
        to[at..at + width].copy_from_slice(from);
    }
}
