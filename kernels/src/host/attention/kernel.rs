//! The inner kernel of attention: query rows of one head against keys and values in blocks.
//!
//! A block holds [`LANES`] consecutive tokens of one key head: first the keys as a column panel
//! (`head_dim` lines of one column each), then the values as panels of sixteen columns (one line
//! per token). A score is one chain over the head's columns. A mixed value is one chain over the
//! tokens from the first visible one, and the softmax has a fixed order that is counted from this
//! token too. A token that a row does not see has weight zero, and adding `0 · v` changes no bit,
//! so rows can be tiled in any way.

use std::ops::Range;

use crate::host::row;

use crate::attention::Attention;
use crate::host::product::lanes::{LANES, Lanes, Line, on_widest};
use crate::host::product::{Destination, Matrix, pack};

impl Attention {
    /// Panels of a head's values; the last one may have unused columns.
    fn value_panels(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }

    /// Lines of a block of one key head.
    pub(super) fn block_lines(&self) -> usize {
        self.head_dim + self.value_panels() * LANES
    }

    /// Writes one token's key and value of one head to place `slot` of a block.
    pub(super) fn write_token(&self, block: &mut [Line], slot: usize, key: &[f32], value: &[f32]) {
        let (keys, values) = block.split_at_mut(self.head_dim);
        for (line, &k) in keys.iter_mut().zip(key) {
            line.0[slot] = k;
        }
        let tokens = values.iter_mut().skip(slot).step_by(LANES);
        for (line, part) in tokens.zip(value.chunks(LANES)) {
            line.0[..part.len()].copy_from_slice(part);
        }
    }

    /// Packs key head `head` of the `q | k | v` rows of a segment as blocks at the front of
    /// `blocks`.
    pub(super) fn pack_blocks(&self, qkv: &[f32], head: usize, blocks: &mut Vec<Line>) {
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
            // Values after the last token are not read, and results of unused columns are dropped.
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

/// The blocks of one key head of one sequence.
#[derive(Clone, Copy)]
pub struct Blocks<'a> {
    /// All blocks of the cache or segment.
    pub data: &'a [Line],
    /// Ids of the sequence's blocks in order; `None` if `data` holds them in order.
    pub ids: Option<&'a [u32]>,
    /// Lines from one block to the next.
    pub stride: usize,
    /// Lines from the start of a block to the head's.
    pub offset: usize,
}

impl Blocks<'_> {
    /// The lines of block `i` of the sequence.
    ///
    /// # Panics
    /// If there is no such block: a bug of the caller.
    #[inline(always)]
    fn get(&self, i: usize, lines: usize) -> *const f32 {
        let id = self.ids.map_or(i, |ids| ids[i] as usize);
        self.data[id * self.stride + self.offset..][..lines]
            .as_ptr()
            .cast()
    }
}

/// Query rows of one head, and the keys and values that they see.
pub struct Queries<'a> {
    /// Shape and scale.
    pub spec: &'a Attention,
    /// Elements from the first row's first column on.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    /// Position of the first row.
    pub position: usize,
    /// Difference between the positions of two rows: 1 for consecutive tokens, 0 for heads of one
    /// token.
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
    /// No other thread may access the window of `out`.
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
        let tile = AttentionTile {
            queries,
            first,
            rows: L::ROWS.min(queries.count - first),
        };
        // SAFETY: the caller keeps this function's contract.
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

/// Query rows that are computed together.
struct AttentionTile<'a> {
    queries: &'a Queries<'a>,
    first: usize,
    rows: usize,
}

/// Left-hand sides of chains: a row of `count` elements for each row of a tile.
#[derive(Clone, Copy)]
struct ChainRows {
    data: *const f32,
    stride: usize,
    count: usize,
}

impl AttentionTile<'_> {
    /// Positions of the keys that row `i` sees.
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
        // SAFETY: the buffer holds a row of scores per query; the caller promises the rest.
        unsafe {
            self.scores::<L, M>(from..end, width, scores);
            let scales = self.softmax::<M>(from * LANES, width, scores);
            self.mix::<L, M>(from..end, width, scores, scales, out.below(self.first));
        }
    }

    /// Scores, as chains over the head's columns, from the keys of block `span.start` to token
    /// `span.end`.
    #[inline(always)]
    unsafe fn scores<L: Lanes, const M: usize>(
        &self,
        span: Range<usize>,
        width: usize,
        scores: &mut [f32],
    ) {
        let head_dim = self.queries.spec.head_dim;
        let rows = ChainRows {
            data: self.queries.data[self.first * self.queries.stride..].as_ptr(),
            stride: self.queries.stride,
            count: head_dim,
        };
        let blocks = span.end.div_ceil(LANES);
        let mut block = span.start;
        // SAFETY: queries were checked, `get` checks blocks, and scores have `M` rows of `width`.
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

    /// Replaces scores by unnormalised weights, zero for keys that a row does not see, and returns
    /// each row's normalising factor. Columns after a row's last key are computed too: their
    /// weights are zero, and whole lines are faster.
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

    /// Mixed values, as chains over the tokens, a panel of columns at a time.
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
        // SAFETY: the caller promises `M` rows of `width` weights, and `M` rows of the head's
        // columns in `out`.
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
        // SAFETY: the caller keeps this function's contract.
        unsafe {
            let mut acc = [[L::zero(); N]; M];
            for block in span.start..span.end.div_ceil(LANES) {
                let values = self.queries.blocks.get(block, spec.block_lines());
                let b = std::array::from_fn(|j| {
                    values.add((spec.head_dim + (panel + j) * LANES) * LANES)
                });
                let rows = ChainRows {
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

/// Writes chains of `M` rows and `N` panels, which start from zero, to rows of `to` that are
/// `stride` apart.
#[inline(always)]
unsafe fn put<L: Lanes, const M: usize, const N: usize>(
    rows: ChainRows,
    panels: [*const f32; N],
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller keeps this function's contract.
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
    rows: ChainRows,
    panels: [*const f32; N],
    acc: &mut [[L; N]; M],
) {
    // SAFETY: the caller keeps this function's contract.
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
    use crate::host::product::lanes::Plain;

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn attend_avx2(queries: &Queries, scores: &mut Vec<f32>, out: Destination) {
        // SAFETY: the caller keeps this function's contract.
        unsafe { attend_on::<crate::host::product::lanes::Avx2>(queries, scores, out) }
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
        // Earlier contents of a buffer have no effect.
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
