//! The part of a tile that lies inside the destination.

use super::super::destination::Destination;
use super::super::lanes::{LANES, Line};
use super::TILE;

/// Some rows and columns of a destination, where a tile belongs.
pub struct Window<'a> {
    pub c: Destination<'a>,
    pub rows: usize,
    pub columns: usize,
}

impl Window<'_> {
    /// Whether a tile of so many rows can be read and written where it lies.
    pub fn holds(&self, rows: usize) -> bool {
        self.rows == rows && self.columns == LANES
    }

    /// Copies what the destination holds to a tile that stands in for it.
    ///
    /// # Safety
    /// The window must lie inside the destination, and hold numbers.
    pub unsafe fn read(&self, tile: &mut [Line]) {
        for (i, line) in tile.iter_mut().enumerate().take(self.rows.min(TILE)) {
            // SAFETY: the caller's.
            let row = unsafe { std::slice::from_raw_parts(self.row(i), self.columns) };
            line.0[..self.columns].copy_from_slice(row);
        }
    }

    /// Copies such a tile to the destination.
    ///
    /// # Safety
    /// The window must lie inside the destination, and nobody else may touch it meanwhile.
    pub unsafe fn write(&self, tile: &[Line]) {
        for (i, line) in tile.iter().enumerate().take(self.rows.min(TILE)) {
            // SAFETY: the caller's.
            unsafe {
                std::ptr::copy_nonoverlapping(line.0.as_ptr(), self.row(i), self.columns);
            }
        }
    }

    fn row(&self, i: usize) -> *mut f32 {
        self.c.below(i).at
    }
}
