//! Rotary position embedding (Su et al. 2021, eq. 34) in the half-split form of Hugging Face
//! checkpoints: the pairs `(x[i], x[i + half])` of each head are rotated.

use multiversion::multiversion;

use super::pool;
use crate::arguments::Direction;

/// Rows of one task.
const ROWS: usize = 64;

/// Rotates the first `heads` heads of each row of `x`, `[rows, columns]`, in place. `cosines` and
/// `sines` are `[rows, half]`, and a head has `2·half` columns.
///
/// # Panics
/// If the lengths do not fit: a bug of the caller.
pub fn rotate(
    x: &mut [f32],
    [cosines, sines]: [&[f32]; 2],
    rows: usize,
    heads: usize,
    half: usize,
    direction: Direction,
) {
    let columns = x.len() / rows.max(1);
    assert_eq!(x.len(), rows * columns, "rows of rope");
    assert!(rows == 0 || heads * 2 * half <= columns, "heads of rope");
    let angles = [cosines.len(), sines.len()];
    assert_eq!(angles, [rows * half; 2], "angles of rope");
    let sign = match direction {
        Direction::Forward => 1.0,
        Direction::Backward => -1.0,
    };
    let block = ROWS * half.max(1);
    let angles = cosines.chunks(block).zip(sines.chunks(block));
    let blocks = x.chunks_mut(ROWS * columns.max(1)).zip(angles);
    pool::for_each(blocks, |(rows, (cos, sin))| {
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for (row, (cos, sin)) in rows.chunks_exact_mut(columns).zip(angles) {
            for head in row[..heads * 2 * half].chunks_exact_mut(2 * half) {
                turn_head(head, cos, sin, sign);
            }
        }
    });
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn turn_head(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let (low, high) = head.split_at_mut(cos.len());
    let pairs = low.iter_mut().zip(high);
    for ((low, high), (&cos, &sin)) in pairs.zip(cos.iter().zip(sin)) {
        let (a, b, s) = (*low, *high, direction * sin);
        *low = a * cos - b * s;
        *high = b * cos + a * s;
    }
}
