//! The inner kernel of attention: query rows of one head against keys and values that lie in blocks.
//!
//! A block holds [`LANES`] consecutive tokens of one key head: the keys as a column panel, `head_dim` lines of a column each, then
//! the values as panels of sixteen columns, a line a token. Scores are one chain over the head's columns, the mix of values one
//! chain over the tokens from the first visible one, the softmax one fixed order counted from there too. A token that a row does
//! not see has weight zero, and adding `0 · v` changes no bit, so rows may be tiled in any way.

use std::ops::Range;

use rollout::row;

use super::Attention;
use crate::ops::product::lanes::{LANES, Lanes, Line, on_widest};
use crate::ops::product::{Destination, Matrix, pack};

impl Attention {
    /// Panels of a head's values; the last may have columns to spare.
    fn value_panels(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }

    /// Lines of one block of one key head.
    pub(crate) fn block_lines(&self) -> usize {
        self.head_dim + self.value_panels() * LANES
    }

    /// Puts one token's key and value of one head into place `slot` of a block.
    pub(crate) fn write_token(&self, block: &mut [Line], slot: usize, key: &[f32], value: &[f32]) {
        let (keys, values) = block.split_at_mut(self.head_dim);
        for (line, &k) in keys.iter_mut().zip(key) {
            line.0[slot] = k;
        }
        let tokens = values.iter_mut().skip(slot).step_by(LANES);
        for (line, part) in tokens.zip(value.chunks(LANES)) {
            line.0[..part.len()].copy_from_slice(part);
        }
    }

    /// Blocks of key head `head` of the `q | k | v` rows of a segment, in order, at the front of `blocks`.
    pub(crate) fn pack_blocks(&self, qkv: &[f32], head: usize, blocks: &mut Vec<Line>) {
        let (columns, size) = (self.columns(), self.block_lines());
        let rows = qkv.len() / columns;
        let window =
            |first: usize| Matrix::new(&qkv[first.min(qkv.len())..], rows, self.head_dim, columns);
        let (keys, values) = (
            window(self.key_column(head)),
            window(self.value_column(head)),
        );
        let count = rows.div_ceil(LANES);
        if blocks.len() < count * size {
            blocks.resize(count * size, Line::default());
        }
        for (i, block) in blocks.chunks_exact_mut(size).enumerate().take(count) {
            let first = i * LANES;
            pack(keys, first, 0..self.head_dim, &mut block[..self.head_dim]);
            // Values behind the last token are not read, and what stands in columns to spare comes to nothing that is kept.
            for row in first..rows.min(first + LANES) {
                let lines = block[self.head_dim..].iter_mut().skip(row - first);
                let parts = values.row(row).chunks(LANES);
                for (line, part) in lines.step_by(LANES).zip(parts) {
                    line.0[..part.len()].copy_from_slice(part);
                }
            }
        }
    }
}

/// Where the blocks of one key head of one sequence lie.
#[derive(Clone, Copy)]
pub struct Blocks<'a> {
    /// All blocks.
    pub data: &'a [Line],
    /// Which of them, in order; without it they lie in order.
    pub ids: Option<&'a [u32]>,
    /// Lines from a block to the next.
    pub stride: usize,
    /// Lines from there to the head's.
    pub offset: usize,
}

impl Blocks<'_> {
    /// The lines of block `i` of the sequence.
    ///
    /// # Panics
    /// If there is none: a bug of the caller.
    #[inline(always)]
    fn get(&self, i: usize, lines: usize) -> *const f32 {
        let id = self.ids.map_or(i, |ids| ids[i] as usize);
        self.data[id * self.stride + self.offset..][..lines]
            .as_ptr()
            .cast()
    }
}

/// Query rows of one head and what they see.
pub struct Queries<'a> {
    /// Shape and scale.
    pub spec: &'a Attention,
    /// From the first row's first column on.
    pub data: &'a [f32],
    /// Distance of the rows.
    pub stride: usize,
    /// Position of the first row.
    pub position: usize,
    /// Distance of the rows' positions: 1 for neighbours, 0 for heads of one token.
    pub step: usize,
    /// Number of rows.
    pub count: usize,
    /// Keys and values.
    pub blocks: Blocks<'a>,
}

on_widest! {
    /// Mixes values for each query row: `out` is `[count, head_dim]`.
    ///
    /// # Safety
    /// Nobody else may touch the window of `out` meanwhile.
    pub unsafe fn attend(queries: &Queries, scores: &mut Vec<f32>, out: Destination) = attend_on;
}

#[inline(always)]
unsafe fn attend_on<L: Lanes>(queries: &Queries, scores: &mut Vec<f32>, out: Destination) {
    let last = queries.count.saturating_sub(1);
    assert!(
        queries.count == 0 || last * queries.stride + queries.spec.head_dim <= queries.data.len(),
        "query rows reach past the data"
    );
    out.check(queries.count, queries.spec.head_dim);
    for first in (0..queries.count).step_by(L::ROWS) {
        let tile = Tile {
            queries,
            first,
            rows: L::ROWS.min(queries.count - first),
        };
        // SAFETY: the caller's.
        unsafe {
            match tile.rows {
                1 => tile.run::<L, 1>(scores, out),
                2 => tile.run::<L, 2>(scores, out),
                3 => tile.run::<L, 3>(scores, out),
                4 => tile.run::<L, 4>(scores, out),
                5 if L::ROWS >= 5 => tile.run::<L, 5>(scores, out),
                6 if L::ROWS >= 6 => tile.run::<L, 6>(scores, out),
                7 if L::ROWS >= 7 => tile.run::<L, 7>(scores, out),
                8 if L::ROWS >= 8 => tile.run::<L, 8>(scores, out),
                _ => unreachable!("more rows than a tile takes"),
            }
        }
    }
}

/// Some of the query rows.
struct Tile<'a> {
    queries: &'a Queries<'a>,
    first: usize,
    rows: usize,
}

/// A row of elements for each row of a tile, and how many of them a chain runs over.
#[derive(Clone, Copy)]
struct Rows {
    data: *const f32,
    stride: usize,
    count: usize,
}

impl Tile<'_> {
    /// The keys that row `i` sees.
    #[inline(always)]
    fn visible(&self, i: usize) -> Range<usize> {
        let position = self.queries.position + (self.first + i) * self.queries.step;
        self.queries.spec.first_key(position)..position + 1
    }

    #[inline(always)]
    unsafe fn run<L: Lanes, const M: usize>(&self, scores: &mut Vec<f32>, out: Destination) {
        let (from, end) = (self.visible(0).start / LANES, self.visible(M - 1).end);
        let width = end.next_multiple_of(LANES);
        if scores.len() < M * width {
            scores.resize(M * width, 0.0);
        }
        // SAFETY: the buffer has room for a row of scores a query; the rest is the caller's.
        unsafe {
            self.scores::<L, M>(from..end, width, scores);
            let scales = self.softmax::<M>(from * LANES, width, scores);
            self.mix::<L, M>(from..end, width, scores, scales, out.below(self.first));
        }
    }

    /// Chains over the head's columns: keys of block `span.start` up to token `span.end`.
    #[inline(always)]
    unsafe fn scores<L: Lanes, const M: usize>(
        &self,
        span: Range<usize>,
        width: usize,
        scores: &mut [f32],
    ) {
        let head_dim = self.queries.spec.head_dim;
        let rows = Rows {
            data: self.queries.data[self.first * self.queries.stride..].as_ptr(),
            stride: self.queries.stride,
            count: head_dim,
        };
        let blocks = span.end.div_ceil(LANES);
        let mut block = span.start;
        // SAFETY: queries were checked, blocks are by `get`; scores have `M` rows of `width`.
        unsafe {
            while block < blocks {
                let to = scores.as_mut_ptr().add(block * LANES);
                let key = |j| self.queries.blocks.get(block + j, head_dim);
                match blocks - block {
                    1 => put::<L, M, 1>(rows, [key(0)], to, width),
                    2 if L::PANELS >= 2 => put::<L, M, 2>(rows, [key(0), key(1)], to, width),
                    _ if L::PANELS >= 3 => {
                        put::<L, M, 3>(rows, [key(0), key(1), key(2)], to, width);
                    }
                    _ => put::<L, M, 1>(rows, [key(0)], to, width),
                }
                block += L::PANELS.min(blocks - block);
            }
        }
    }

    /// Unnormalised weights in place of scores, zero where a row does not see; returns what each row is to be multiplied by. What lies
    /// behind a row's last key is weighed with the rest: it comes to zero, and whole lines take less time than a part of one.
    #[inline(always)]
    fn softmax<const M: usize>(&self, from: usize, width: usize, scores: &mut [f32]) -> [f32; M] {
        std::array::from_fn(|i| {
            let seen = self.visible(i);
            let row = &mut scores[i * width..][..width];
            row[from..seen.start].fill(0.0);
            row[seen.end..].fill(f32::NEG_INFINITY);
            1.0 / row::weights_in_place(&mut row[seen.start..], self.queries.spec.scale).sum
        })
    }

    /// Chains over the tokens, a panel of columns at a time.
    #[inline(always)]
    unsafe fn mix<L: Lanes, const M: usize>(
        &self,
        span: Range<usize>,
        width: usize,
        weights: &[f32],
        scales: [f32; M],
        out: Destination,
    ) {
        let panels = self.queries.spec.value_panels();
        let mut panel = 0;
        // SAFETY: the caller's: weights have `M` rows of `width`, and `out` has `M` rows of the head's columns.
        unsafe {
            while panel < panels {
                let out = out.right(panel * LANES);
                let data = weights.as_ptr();
                match panels - panel {
                    1 => self.mix_panels::<L, M, 1>(span.clone(), width, data, panel, scales, out),
                    _ if L::PANELS == 1 => {
                        self.mix_panels::<L, M, 1>(span.clone(), width, data, panel, scales, out);
                    }
                    _ => self.mix_panels::<L, M, 2>(span.clone(), width, data, panel, scales, out),
                }
                panel += L::PANELS.min(2).min(panels - panel);
            }
        }
    }

    #[inline(always)]
    unsafe fn mix_panels<L: Lanes, const M: usize, const N: usize>(
        &self,
        span: Range<usize>,
        width: usize,
        weights: *const f32,
        panel: usize,
        scales: [f32; M],
        out: Destination,
    ) {
        let spec = self.queries.spec;
        // SAFETY: the caller's.
        unsafe {
            let mut acc = [[L::zero(); N]; M];
            for block in span.start..span.end.div_ceil(LANES) {
                let values = self.queries.blocks.get(block, spec.block_lines());
                let b = std::array::from_fn(|j| {
                    values.add((spec.head_dim + (panel + j) * LANES) * LANES)
                });
                let rows = Rows {
                    data: weights.add(block * LANES),
                    stride: width,
                    count: LANES.min(span.end - block * LANES),
                };
                chain::<L, M, N>(rows, b, &mut acc);
            }
            for (i, row) in acc.iter().enumerate() {
                let scale = L::splat(&raw const scales[i]);
                for (j, sum) in row.iter().enumerate() {
                    let columns = LANES.min(spec.head_dim - (panel + j) * LANES);
                    let mut line = Line::default();
                    sum.mul(scale).store(line.0.as_mut_ptr());
                    out.put(i, j * LANES, &line.0[..columns]);
                }
            }
        }
    }
}

/// Chains of `M` rows and `N` panels from zero, into rows of `to` that are `stride` apart.
#[inline(always)]
unsafe fn put<L: Lanes, const M: usize, const N: usize>(
    rows: Rows,
    panels: [*const f32; N],
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [[L::zero(); N]; M];
        chain::<L, M, N>(rows, panels, &mut acc);
        for (i, row) in acc.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                sum.store(to.add(i * stride + j * LANES));
            }
        }
    }
}

/// `acc[i][j] += Σₚ rows[i][p] · panels[j][p]`, p ascending, one fused multiply-add each.
#[inline(always)]
unsafe fn chain<L: Lanes, const M: usize, const N: usize>(
    rows: Rows,
    panels: [*const f32; N],
    acc: &mut [[L; N]; M],
) {
    // SAFETY: the caller's.
    unsafe {
        let from: [*const f32; M] = std::array::from_fn(|i| rows.data.add(i * rows.stride));
        let mut local = *acc;
        for p in 0..rows.count {
            let mut b = [L::zero(); N];
            for j in 0..N {
                b[j] = L::load(panels[j].add(p * LANES));
            }
            for i in 0..M {
                let a = L::splat(from[i].add(p));
                for j in 0..N {
                    local[i][j] = a.mul_add(b[j], local[i][j]);
                }
            }
        }
        *acc = local;
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;
    use crate::ops::product::lanes::Plain;

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn attend_avx2(queries: &Queries, scores: &mut Vec<f32>, out: Destination) {
        // SAFETY: the caller's.
        unsafe { attend_on::<crate::ops::product::lanes::Avx2>(queries, scores, out) }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let spec = Attention {
            query_heads: 2,
            kv_heads: 1,
            head_dim: 40,
            scale: 0.3,
            window: Some(30),
        };
        let number = |i: usize| ((i * 2_654_435_761) % 1009) as f32 / 1009.0 - 0.5;
        let (rows, columns) = (75, spec.columns());
        let qkv: Vec<f32> = (0..rows * columns).map(number).collect();
        // What a buffer holds from before counts for nothing.
        let mut blocks = vec![Line([f32::NAN; LANES]); 500];
        spec.pack_blocks(&qkv, 0, &mut blocks);
        let queries = Queries {
            spec: &spec,
            data: &qkv,
            stride: columns,
            position: 0,
            step: 1,
            count: rows,
            blocks: Blocks {
                data: &blocks,
                ids: None,
                stride: spec.block_lines(),
                offset: 0,
            },
        };
        let results = |run: &dyn Fn(&Queries, &mut Vec<f32>, Destination)| {
            let mut out = vec![MaybeUninit::new(f32::NAN); rows * spec.head_dim];
            run(
                &queries,
                &mut Vec::new(),
                Destination::new(&mut out, spec.head_dim),
            );
            // SAFETY: all were set from the start.
            let out = out.iter().map(|x| unsafe { x.assume_init() });
            out.collect::<Vec<f32>>()
        };
        // SAFETY: the destination is a whole matrix of the queries' size.
        let plain = results(&|q, s, o| unsafe { attend_on::<Plain>(q, s, o) });
        assert!(plain.iter().all(|x| x.is_finite()));
        assert_eq!(results(&|q, s, o| unsafe { attend(q, s, o) }), plain);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            assert_eq!(results(&|q, s, o| unsafe { attend_avx2(q, s, o) }), plain);
        }
    }
}
