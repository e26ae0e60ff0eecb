//! Splits each `f32` into three bfloat16 parts, in the layouts that the matrix unit reads.
//!
//! `x = high + middle + low` exactly: each part is the remainder so far, rounded to the nearest
//! number of eight significant bits, and an `f32` has three times eight. Exceptions: below 2⁻¹⁰³ a
//! part would be subnormal, and the unit reads it as 0. The remainder of an infinity, and of the
//! largest few numbers, is NaN: products with them are NaN as well.

use std::arch::x86_64::{
    __m512, __m512i, __mmask16, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_loadu_si512, _mm512_mask_blend_epi16, _mm512_maskz_loadu_ps,
    _mm512_permutex2var_epi16, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_srli_epi32,
    _mm512_storeu_si512, _mm512_sub_ps,
};
use std::ops::Range;

use super::lanes::{Avx512, LANES, Line};
use super::matrix::Matrix;
use super::pack::transposed;

/// Inputs of a tile.
pub const CHUNK: usize = 32;
/// Lines of a tile: its rows.
pub const TILE: usize = 16;
/// Lines of the three tiles of parts.
pub const BLOCK: usize = 3 * TILE;

/// Lines of a panel of parts.
pub fn lines(inputs: usize) -> usize {
    inputs.div_ceil(CHUNK) * BLOCK
}

/// Splits columns `inputs` of the rows of a left-hand side: tile after tile, and within each tile
/// chunk after chunk. Rows past the matrix's end are zero.
///
/// # Safety
/// The processor must have AVX-512 (F and BW).
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn split_rows(matrix: Matrix, inputs: Range<usize>, blocks: &mut [Line]) {
    // SAFETY: the caller has the instructions.
    unsafe { split::<false>(matrix, 0, inputs, blocks) }
}

/// Splits panels of a right-hand side, whose columns are the rows of `matrix` from `first` on:
/// panel after panel, and within each panel chunk after chunk. Rows past the matrix's end are zero.
///
/// # Safety
/// As for [`split_rows`].
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn split_panels(
    matrix: Matrix,
    first: usize,
    inputs: Range<usize>,
    blocks: &mut [Line],
) {
    // SAFETY: the caller has the instructions.
    unsafe { split::<true>(matrix, first, inputs, blocks) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn split<const PAIRS: bool>(
    matrix: Matrix,
    first: usize,
    inputs: Range<usize>,
    blocks: &mut [Line],
) {
    let chunks = inputs.len().div_ceil(CHUNK);
    let (blocks, _) = blocks.as_chunks_mut::<BLOCK>();
    let tiles = blocks.len() / chunks.max(1);
    // Neighbours in a column are read together.
    for (chunk, input) in inputs.clone().step_by(CHUNK).enumerate() {
        for tile in 0..tiles {
            let block = &mut blocks[tile * chunks + chunk];
            let row = first + tile * TILE;
            let rows = matrix.height().saturating_sub(row).min(TILE);
            if rows == 0 {
                block.fill(Line::default());
                continue;
            }
            let square = matrix
                .rows(row, rows)
                .columns(input..inputs.end.min(input + CHUNK));
            // SAFETY: the caller has the instructions.
            unsafe {
                match PAIRS {
                    true => put_columns(square, block),
                    false => put_rows(square, block),
                }
            }
        }
    }
}

/// Sixteen inputs of each of a square's sixteen rows, or the transpose of these.
type Half = [Avx512; LANES];

/// Writes a tile of a left-hand side: each of its rows is a row of the square.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn put_rows(square: Matrix, block: &mut [Line; BLOCK]) {
    // SAFETY: the caller has the instructions.
    let [first, second] = unsafe {
        match square.strides() {
            [_, 1] => [rows_of(square, 0), rows_of(square, LANES)],
            _ => [
                transposed(columns_of(square, 0)),
                transposed(columns_of(square, LANES)),
            ],
        }
    };
    for i in 0..TILE {
        put::<false>([first[i].0, second[i].0], i, block);
    }
}

/// Writes a tile of a right-hand side: each of its rows is two columns of the square.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn put_columns(square: Matrix, block: &mut [Line; BLOCK]) {
    for first in [0, LANES] {
        // SAFETY: the caller has the instructions.
        let columns = unsafe {
            match square.strides() {
                [_, 1] => transposed(rows_of(square, first)),
                _ => columns_of(square, first),
            }
        };
        for i in 0..TILE / 2 {
            put::<true>(
                [columns[2 * i].0, columns[2 * i + 1].0],
                first / 2 + i,
                block,
            );
        }
    }
}

/// Loads sixteen inputs of each row, where these are neighbours in memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn rows_of(square: Matrix, first: usize) -> Half {
    let (mask, stride) = (
        lanes(square.width().saturating_sub(first)),
        square.strides()[0],
    );
    let mut rows = [Avx512(_mm512_setzero_ps()); LANES];
    for (i, row) in rows.iter_mut().enumerate().take(square.height()) {
        // SAFETY: lanes past the row are not read.
        row.0 = unsafe {
            _mm512_maskz_loadu_ps(
                mask,
                square.data().as_ptr().wrapping_add(i * stride + first),
            )
        };
    }
    rows
}

/// Loads all rows' elements of each of sixteen inputs, where these are neighbours in memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn columns_of(square: Matrix, first: usize) -> Half {
    let (mask, stride) = (lanes(square.height()), square.strides()[1]);
    let mut columns = [Avx512(_mm512_setzero_ps()); LANES];
    for (p, column) in columns
        .iter_mut()
        .enumerate()
        .take(square.width().saturating_sub(first))
    {
        // SAFETY: lanes past the column are not read.
        column.0 = unsafe {
            _mm512_maskz_loadu_ps(
                mask,
                square.data().as_ptr().wrapping_add((first + p) * stride),
            )
        };
    }
    columns
}

/// Mask of the first `count` of sixteen lanes.
fn lanes(count: usize) -> __mmask16 {
    ((1u32 << count.min(LANES)) - 1) as __mmask16
}

/// Writes the joined parts of two registers as row `i` of three tiles: the low parts first, because
/// the unit reads them first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn put<const PAIRS: bool>(x: [__m512; 2], i: usize, block: &mut [Line; BLOCK]) {
    let (high, rest) = part(x);
    let (middle, rest) = part(rest);
    let low = [_mm512_castps_si512(rest[0]), _mm512_castps_si512(rest[1])];
    for (t, [first, second]) in [low, middle, high].into_iter().enumerate() {
        let line = &mut block[t * TILE + i];
        let joined = match PAIRS {
            true => in_pairs(first, second),
            false => side_by_side(first, second),
        };
        // SAFETY: a line is as long as a register.
        unsafe { _mm512_storeu_si512(line.0.as_mut_ptr().cast(), joined) };
    }
}

/// The next part, in the upper halves of the lanes (the lower halves are to be ignored), and the
/// remainder.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn part([first, second]: [__m512; 2]) -> ([__m512i; 2], [__m512; 2]) {
    let (high, rest) = part_of(first);
    let (other, others) = part_of(second);
    ([high, other], [rest, others])
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn part_of(x: __m512) -> (__m512i, __m512) {
    let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
    let rounded = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    (
        rounded,
        _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(rounded, upper))),
    )
}

/// Upper halves of the lanes of one register, then of the other: inputs of a row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn side_by_side(first: __m512i, second: __m512i) -> __m512i {
    const ODD: [u16; 32] = {
        let mut index = [0; 32];
        let mut i = 0;
        while i < 32 {
            index[i] = 2 * i as u16 + 1;
            i += 1;
        }
        index
    };
    // SAFETY: the index is as long as a register.
    let index = unsafe { _mm512_loadu_si512(ODD.as_ptr().cast()) };
    _mm512_permutex2var_epi16(first, index, second)
}

/// Upper halves of the lanes of two registers, alternating: two inputs of sixteen outputs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn in_pairs(first: __m512i, second: __m512i) -> __m512i {
    _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(first), second)
}
