//! Values of a stored tensor, widened to `f32` or transposed.

use std::io;
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::files::stored::StoredTensors;

/// Side of the squares in which a matrix is transposed: two of them fit the first-level cache.
const TRANSPOSE_TILE: usize = 32;

/// Little-endian values of `dtype` at `range` of a file as `f32`; `None` for a type that is not a
/// plain float.
///
/// # Errors
/// If the file cannot be read.
pub(super) fn widen(
    stored: &StoredTensors,
    range: Range<usize>,
    dtype: Dtype,
) -> io::Result<Option<Vec<f32>>> {
    let values = match dtype {
        Dtype::F32 => stored.values(range, f32::from_le_bytes),
        Dtype::BF16 => stored.values(range, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => stored.values(range, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::F64 => stored.values(range, |b| f64::from_le_bytes(b) as f32),
        _ => return Ok(None),
    };
    values.map(Some)
}

/// The transpose of `matrix`: `[rows, columns]` → `[columns, rows]`.
pub(super) fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut turned = vec![0.0; matrix.len()];
    if matrix.is_empty() {
        return turned;
    }
    let strips = turned.par_chunks_mut(rows * TRANSPOSE_TILE).enumerate();
    strips.for_each(|(strip, lines)| {
        let first = strip * TRANSPOSE_TILE;
        for top in (0..rows).step_by(TRANSPOSE_TILE) {
            let bottom = rows.min(top + TRANSPOSE_TILE);
            for (offset, line) in lines.chunks_exact_mut(rows).enumerate() {
                for row in top..bottom {
                    line[row] = matrix[row * columns + first + offset];
                }
            }
        }
    });
    turned
}
