//! The values of a stored tensor: widened to `f32`, or turned over.

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Elements that one thread converts at a time.
const CONVERT_BLOCK: usize = 1 << 16;
/// Side of the square that a transposition moves at a time: two of them stay in the first-level cache.
const TRANSPOSE_TILE: usize = 32;

/// Little-endian values of `dtype` as f32; `None` for a type that is not a plain float.
pub(super) fn widen(bytes: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    match dtype {
        Dtype::F32 => Some(convert(bytes, f32::from_le_bytes)),
        Dtype::BF16 => Some(convert(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F16 => Some(convert(bytes, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::F64 => Some(convert(bytes, |b| f64::from_le_bytes(b) as f32)),
        _ => None,
    }
}

fn convert<const N: usize>(bytes: &[u8], widen: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    let (values, _) = bytes.as_chunks::<N>();
    values
        .par_iter()
        .with_min_len(CONVERT_BLOCK)
        .map(|&value| widen(value))
        .collect()
}

/// `matrix` [rows, columns] as [columns, rows].
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
