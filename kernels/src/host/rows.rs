//! Simple operations on vectors and on the rows of matrices.

use std::mem::MaybeUninit;

use super::pool;

/// Elements of one task.
const BLOCK: usize = 1 << 14;

/// A vector of `len` elements that `write` fills, without clearing it first.
///
/// # Safety
/// `write` must write every element.
pub unsafe fn written(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut data = Vec::with_capacity(len);
    write(&mut data.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is `len`, and the caller promises that `write` fills it.
    unsafe { data.set_len(len) };
    data
}

/// `to += from`
pub fn add(to: &mut [f32], from: &[f32]) {
    let blocks = to.chunks_mut(BLOCK).zip(from.chunks(BLOCK));
    pool::for_each(blocks, |(to, from)| {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    });
}

/// Sets all elements to zero.
pub fn clear(data: &mut [f32]) {
    pool::for_each(data.chunks_mut(BLOCK), |block| block.fill(0.0));
}

/// The rows `rows` of a matrix `x` that is `width` wide.
///
/// # Panics
/// If there is no such row: a bug of the caller.
pub fn gather(x: &[f32], width: usize, rows: &[u32]) -> Vec<f32> {
    let (width, block) = (width.max(1), BLOCK.div_ceil(width.max(1)));
    let write = |all: &mut [MaybeUninit<f32>]| {
        let blocks = all.chunks_mut(block * width).zip(rows.chunks(block));
        pool::for_each(blocks, |(to, rows)| {
            for (to, &row) in to.chunks_exact_mut(width).zip(rows) {
                let from = &x[row as usize * width..][..width];
                to.iter_mut().zip(from).for_each(|(to, from)| {
                    to.write(*from);
                });
            }
        });
    };
    // SAFETY: each row is written completely.
    unsafe { written(rows.len() * width, write) }
}

/// A copy, made by all threads of the pool.
pub fn copied(from: &[f32]) -> Vec<f32> {
    let copy = |to: &mut [MaybeUninit<f32>]| {
        let blocks = to.chunks_mut(BLOCK).zip(from.chunks(BLOCK));
        pool::for_each(blocks, |(to, from)| {
            to.iter_mut().zip(from).for_each(|(to, from)| {
                to.write(*from);
            });
        });
    };
    // SAFETY: both sides have the same length, and so have their blocks.
    unsafe { written(from.len(), copy) }
}
