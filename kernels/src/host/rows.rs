//! Simple operations on vectors and on the rows of matrices.

use std::mem::MaybeUninit;

use super::pool;
use super::product::{Matrix, Write};
use super::written::written;

/// Elements of one task.
const BLOCK: usize = 1 << 14;
/// Rows of one task of a bias or of factors of columns.
const ROWS: usize = 64;

/// `to += from`
pub fn add(to: &mut [f32], from: &[f32]) {
    let blocks = to.chunks_mut(BLOCK).zip(from.chunks(BLOCK));
    pool::for_each(blocks, |(to, from)| {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    });
}

/// Adds the rows of `from` to `to`, which is one row, in ascending order.
pub fn add_rows(to: &mut [f32], from: &[f32]) {
    for row in from.chunks_exact(to.len().max(1)) {
        to.iter_mut().zip(row).for_each(|(to, from)| *to += from);
    }
}

/// Adds `bias` to the columns of each row of `y` from `column` on; rows are `width` wide.
///
/// # Panics
/// If the columns lie outside of the rows: a bug of the caller.
pub fn add_bias(y: &mut [f32], bias: &[f32], width: usize, column: usize) {
    let columns = column..column + bias.len();
    pool::for_each(y.chunks_mut(width.max(1) * ROWS), |rows| {
        for row in rows.chunks_exact_mut(width) {
            let row = row[columns.clone()].iter_mut().zip(bias);
            row.for_each(|(y, b)| *y += b);
        }
    });
}

/// Adds the sums of the columns of `from` to `to`: its rows in ascending order.
///
/// # Panics
/// If the matrix is transposed: a bug of the caller.
pub fn add_column_sums(to: &mut [f32], from: Matrix) {
    for row in 0..from.height() {
        let pairs = to.iter_mut().zip(from.row(row));
        pairs.for_each(|(to, from)| *to += from);
    }
}

/// Multiplies each column of `x` by its factor.
pub fn scale_columns(x: &mut [f32], factors: &[f32]) {
    let width = factors.len().max(1);
    pool::for_each(x.chunks_mut(width * ROWS), |rows| {
        for row in rows.chunks_exact_mut(width) {
            row.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        }
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

/// Adds the rows of `from` to the rows `rows` of a matrix `to` that is `width` wide, or writes them
/// over these, in ascending order.
///
/// # Panics
/// If there is no such row: a bug of the caller.
pub fn scatter(to: &mut [f32], width: usize, rows: &[u32], from: &[f32], write: Write) {
    for (&row, from) in rows.iter().zip(from.chunks_exact(width.max(1))) {
        let to = &mut to[row as usize * width..][..width];
        match write {
            Write::Set => to.copy_from_slice(from),
            Write::Add => to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
        }
    }
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
