//! Sixteen rows of a matrix side by side, `panel[p][i] = A[first + i][p]`: the layout of both operands of the kernel.

use std::ops::Range;

use super::lanes::{LANES, Lanes, Line, on_widest};
use super::matrix::Matrix;

/// Packs rows of `matrix` from `first` on, columns `columns`, into panels of as many lines, one after the other; rows past the
/// matrix's end are zero.
///
/// # Panics
/// If the columns lie outside: a bug of the caller.
pub fn pack(matrix: Matrix, first: usize, columns: Range<usize>, panels: &mut [Line]) {
    // SAFETY: it asks for instructions alone.
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

/// [`pack`] with the registers of `L`.
///
/// # Safety
/// The processor must have their instructions.
#[inline(always)]
pub unsafe fn pack_on<L: Lanes>(
    matrix: Matrix,
    first: usize,
    columns: Range<usize>,
    panels: &mut [Line],
) {
    let (k, [row_stride, column_stride]) = (columns.len(), matrix.strides());
    let rows = matrix.height() - first;
    let data = matrix.data();
    let start = first * row_stride + columns.start * column_stride;
    let from = &data[start.min(data.len())..];
    if column_stride != 1 {
        return gather(from, column_stride, rows, k, panels);
    }
    for (i, panel) in panels.chunks_exact_mut(k.max(1)).enumerate() {
        let first = i * LANES;
        let from = &from[(first * row_stride).min(from.len())..];
        // SAFETY: the caller's.
        unsafe { transpose::<L>(from, row_stride, LANES.min(rows - first), panel) };
    }
}

/// Rows whose elements are neighbours.
#[inline(always)]
unsafe fn transpose<L: Lanes>(from: &[f32], stride: usize, count: usize, panel: &mut [Line]) {
    let k = panel.len();
    assert!(
        k == 0 || (count - 1) * stride + k <= from.len(),
        "rows to be packed reach past the matrix"
    );
    let (blocks, rest) = panel.as_chunks_mut::<LANES>();
    for (i, lines) in blocks.iter_mut().enumerate() {
        // SAFETY: sixteen elements from column 16·i on lie inside each of the rows, as was checked.
        unsafe { transpose_block::<L>(from.as_ptr().add(i * LANES), stride, count, lines) };
    }
    let done = k - rest.len();
    for (p, line) in rest.iter_mut().enumerate() {
        line.0 = std::array::from_fn(|i| match i < count {
            true => from[i * stride + done + p],
            false => 0.0,
        });
    }
}

/// A square of sixteen by sixteen: four rounds of the perfect shuffle.
#[inline(always)]
unsafe fn transpose_block<L: Lanes>(
    from: *const f32,
    stride: usize,
    count: usize,
    lines: &mut [Line; LANES],
) {
    // SAFETY: the caller's: `count` rows of sixteen elements can be read.
    unsafe {
        let mut rows = [L::zero(); LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            if i < count {
                *row = L::load(from.add(i * stride));
            }
        }
        for _ in 0..LANES.ilog2() {
            let before = rows;
            for i in 0..LANES / 2 {
                [rows[2 * i], rows[2 * i + 1]] = before[i].interleave(before[i + LANES / 2]);
            }
        }
        for (row, line) in rows.into_iter().zip(lines) {
            row.store(line.0.as_mut_ptr());
        }
    }
}

/// Columns whose elements are neighbours; each is read once for all panels.
#[inline(always)]
fn gather(from: &[f32], stride: usize, rows: usize, k: usize, panels: &mut [Line]) {
    for p in 0..k {
        let column = &from[p * stride..];
        for (i, line) in panels.iter_mut().skip(p).step_by(k).enumerate() {
            let from = &column[i * LANES..];
            match from.first_chunk::<LANES>() {
                Some(all) if rows >= (i + 1) * LANES => line.0 = *all,
                _ => {
                    let count = rows - i * LANES;
                    line.0 = [0.0; LANES];
                    line.0[..count].copy_from_slice(&from[..count]);
                }
            }
        }
    }
}
