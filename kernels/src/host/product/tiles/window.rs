//! The part of a tile that lies inside the destination.

use super::super::destination::Destination;
use super::super::lanes::{LANES, Line};
use super::super::parts::TILE;

/// Rows and columns of a destination that a tile covers.
pub struct Window<'a> {
    pub c: Destination<'a>,
    pub rows: usize,
    pub columns: usize,
}

impl Window<'_> {
    /// Whether the destination holds all of a tile with `rows` rows.
    pub fn holds(&self, rows: usize) -> bool {
        self.rows == rows && self.columns == LANES
    }

    /// Copies the window to a tile that stands in for it.
    ///
    /// # Safety
    /// The window must lie inside the destination and be initialised.
    pub unsafe fn read(&self, tile: &mut [Line]) {
        for (i, line) in tile.iter_mut().enumerate().take(self.rows.min(TILE)) {
            // SAFETY: the caller keeps this function's contract.
            let row = unsafe { std::slice::from_raw_parts(self.row(i), self.columns) };
            line.0[..self.columns].copy_from_slice(row);
        }
    }

    /// Copies a stand-in tile to the window.
    ///
    /// # Safety
    /// The window must lie inside the destination, and no other thread may access it.
    pub unsafe fn write(&self, tile: &[Line]) {
        for (i, line) in tile.iter().enumerate().take(self.rows.min(TILE)) {
            // SAFETY: the caller keeps this function's contract.
            unsafe {
                std::ptr::copy_nonoverlapping(line.0.as_ptr(), self.row(i), self.columns);
            }
        }
    }

    fn row(&self, i: usize) -> *mut f32 {
        self.c.below(i).at
    }
}
