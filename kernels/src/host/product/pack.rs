//! Packs sixteen rows of a matrix side by side, `panel[p][i] = A[first + i][p]`: the layout of both
//! operands of chains.

use std::ops::Range;

use super::lanes::{LANES, Lanes, Line, on_widest};
use super::matrix::Matrix;

/// Packs columns `columns` of the rows of `matrix` from `first` on into consecutive panels of as
/// many lines; rows past the matrix's end are zero.
///
/// # Panics
/// If the columns lie outside: a bug of the caller.
pub fn pack(matrix: Matrix, first: usize, columns: Range<usize>, panels: &mut [Line]) {
    // SAFETY: the function chooses instructions that the processor has.
    unsafe { pack_widest(matrix, first, columns, panels) }
}

on_widest! {
    unsafe fn pack_widest(
        matrix: Matrix,
        first: usize,
        columns: Range<usize>,
        panels: &mut [Line],
    ) = pack_on;
}

#[inline(always)]
unsafe fn pack_on<L: Lanes>(
    matrix: Matrix,
    first: usize,
    columns: Range<usize>,
    panels: &mut [Line],
) {
    // SAFETY: the caller keeps this function's contract.
    unsafe { pack_groups::<L>(matrix, first, columns, panels, LANES) }
}

/// Packs columns `columns` of all rows of `matrix` for the tiles of chains: like panels, but with
/// [`Lanes::GROUP`] rows side by side.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
pub unsafe fn pack_rows<L: Lanes>(matrix: Matrix, columns: Range<usize>, panels: &mut [Line]) {
    // SAFETY: the caller keeps this function's contract.
    unsafe { pack_groups::<L>(matrix, 0, columns, panels, L::GROUP) }
}

/// Offset of the tile that begins at row `first`, among rows that were packed to a depth.
#[inline(always)]
pub fn packed_at<L: Lanes>(first: usize, depth: usize) -> usize {
    first / L::GROUP * L::GROUP * depth + first % L::GROUP
}

/// A panel that is being packed: whole, or as two halves of eight rows each.
struct PanelSlot {
    at: *mut f32,
    depth: usize,
    group: usize,
}

impl PanelSlot {
    /// Address of column `p` of row `i` of the sixteen.
    #[inline(always)]
    fn of(&self, i: usize, p: usize) -> *mut f32 {
        let at = (i / self.group * self.depth + p) * self.group + i % self.group;
        self.at.wrapping_add(at)
    }

    #[inline(always)]
    unsafe fn put<L: Lanes>(&self, p: usize, line: L) {
        // SAFETY: the caller keeps this function's contract.
        unsafe {
            match self.group {
                LANES => line.store(self.of(0, p)),
                _ => line.store_halves(self.of(0, p), self.of(LANES / 2, p)),
            }
        }
    }
}

#[inline(always)]
unsafe fn pack_groups<L: Lanes>(
    matrix: Matrix,
    first: usize,
    columns: Range<usize>,
    panels: &mut [Line],
    group: usize,
) {
    let (k, [row_stride, column_stride]) = (columns.len(), matrix.strides());
    let rows = matrix.height() - first;
    let data = matrix.data();
    let start = first * row_stride + columns.start * column_stride;
    let from = &data[start.min(data.len())..];
    if column_stride != 1 {
        // SAFETY: the caller keeps this function's contract.
        return unsafe { gather::<L>(from, column_stride, rows, k, panels, group) };
    }
    for (i, panel) in panels.chunks_exact_mut(k.max(1)).enumerate() {
        let first = i * LANES;
        let from = &from[(first * row_stride).min(from.len())..];
        let to = PanelSlot {
            at: panel.as_mut_ptr().cast(),
            depth: k,
            group,
        };
        // SAFETY: the caller keeps this function's contract.
        unsafe { transpose::<L>(from, row_stride, LANES.min(rows - first), to) };
    }
}

/// Packs a panel of rows whose elements are neighbours in memory.
#[inline(always)]
unsafe fn transpose<L: Lanes>(from: &[f32], stride: usize, count: usize, to: PanelSlot) {
    let k = to.depth;
    assert!(
        k == 0 || (count - 1) * stride + k <= from.len(),
        "rows to be packed reach past the matrix"
    );
    let done = k / LANES * LANES;
    for start in (0..done).step_by(LANES) {
        // SAFETY: each row has sixteen elements from column `start` on, as was checked.
        unsafe { transpose_block::<L>(from.as_ptr().add(start), stride, count, start, &to) };
    }
    for p in done..k {
        for i in 0..LANES {
            let element = if i < count { from[i * stride + p] } else { 0.0 };
            // SAFETY: the panel has room for sixteen rows of `depth` columns.
            unsafe { *to.of(i, p) = element };
        }
    }
}

#[inline(always)]
unsafe fn transpose_block<L: Lanes>(
    from: *const f32,
    stride: usize,
    count: usize,
    start: usize,
    to: &PanelSlot,
) {
    // SAFETY: the caller's: `count` rows of sixteen elements can be read.
    unsafe {
        let mut rows = [L::zero(); LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            if i < count {
                *row = L::load(from.add(i * stride));
            }
        }
        for (p, row) in transposed(rows).into_iter().enumerate() {
            to.put(start + p, row);
        }
    }
}

/// Transposes a square of sixteen by sixteen: four rounds of the perfect shuffle.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
pub unsafe fn transposed<L: Lanes>(mut rows: [L; LANES]) -> [L; LANES] {
    for _ in 0..LANES.ilog2() {
        let before = rows;
        for i in 0..LANES / 2 {
            // SAFETY: the caller keeps this function's contract.
            let pair = unsafe { before[i].interleave(before[i + LANES / 2]) };
            [rows[2 * i], rows[2 * i + 1]] = pair;
        }
    }
    rows
}

/// Packs columns whose elements are neighbours in memory; each column is read once for all panels.
#[inline(always)]
unsafe fn gather<L: Lanes>(
    from: &[f32],
    stride: usize,
    rows: usize,
    k: usize,
    panels: &mut [Line],
    group: usize,
) {
    let count = panels.len() / k.max(1);
    for p in 0..k {
        let column = &from[p * stride..];
        for i in 0..count {
            let to = PanelSlot {
                at: panels[i * k..].as_mut_ptr().cast(),
                depth: k,
                group,
            };
            let from = &column[i * LANES..];
            // SAFETY: the panel has room for sixteen rows of `k` columns.
            unsafe {
                match from.first_chunk::<LANES>() {
                    Some(all) if rows >= (i + 1) * LANES => to.put(p, L::load(all.as_ptr())),
                    _ => {
                        let count = rows - i * LANES;
                        let mut line = [0.0; LANES];
                        line[..count].copy_from_slice(&from[..count]);
                        to.put(p, L::load(line.as_ptr()));
                    }
                }
            }
        }
    }
}
