//! What a task fetches into the second-level cache while it computes on something else.

use std::ops::Range;

use super::lanes::{LANES, Lanes};
use super::matrix::Matrix;

/// Inputs between two lines of a panel that are fetched.
pub const TURN: usize = 4;

/// Passes over a round of panels from which on fetching the next round ahead pays; with fewer, the processor's own prefetching does
/// better.
const LEAST_PASSES: usize = 3;

/// The panels of the next round, of which each tile fetches a share.
#[derive(Clone, Copy)]
pub struct NextPanels {
    from: *const f32,
    /// Distance of panels.
    panel: usize,
    /// Elements that lie between those fetched in two turns; 0 where nothing is to be fetched.
    step: usize,
}

impl NextPanels {
    /// `from` on, `panel` elements apart, in so many passes of tiles.
    pub fn new(from: *const f32, panel: usize, passes: usize) -> Self {
        let step = match passes < LEAST_PASSES {
            true => 0,
            false => TURN * LANES / passes,
        };
        Self { from, panel, step }
    }

    /// What remains after so many passes of so many turns.
    pub fn after(self, passes: usize, turns: usize) -> Self {
        let from = self.from.wrapping_add(passes * turns * self.step);
        Self { from, ..self }
    }

    /// A line of each of `N` panels.
    ///
    /// # Safety
    /// It asks for instructions alone.
    #[inline(always)]
    pub unsafe fn fetch<L: Lanes, const N: usize>(&self, turn: usize) {
        if self.step > 0 {
            for j in 0..N {
                // SAFETY: any address may be fetched; the instruction is the caller's.
                unsafe {
                    L::prefetch(self.from.wrapping_add(j * self.panel + turn * self.step));
                }
            }
        }
    }
}

/// Rows that will be packed next: they come from far, and packing would wait for every one of them.
pub struct NextRows {
    from: *const f32,
    /// Runs of neighbouring elements that are left, how far apart they begin, and lines of each.
    runs: usize,
    stride: usize,
    width: usize,
    /// Lines of the first run that were fetched.
    done: usize,
    /// Lines to be fetched at a time.
    share: usize,
}

impl NextRows {
    /// Some columns of `rows`, in so many shares.
    pub fn new(rows: Matrix, columns: Range<usize>, shares: usize) -> Self {
        let [row, column] = rows.strides();
        let from = rows.data().as_ptr();
        let (runs, stride, elements) = match column {
            1 => (rows.height(), row, columns.len()),
            _ => (columns.len(), column, rows.height()),
        };
        let width = elements.div_ceil(LANES);
        Self {
            from: from.wrapping_add(columns.start * column),
            runs: if width == 0 { 0 } else { runs },
            stride,
            width,
            done: 0,
            share: (runs * width).div_ceil(shares.max(1)),
        }
    }

    /// The next share.
    ///
    /// # Safety
    /// It asks for instructions alone.
    #[inline(always)]
    pub unsafe fn fetch<L: Lanes>(&mut self) {
        for _ in 0..self.share {
            if self.runs == 0 {
                return;
            }
            // SAFETY: any address may be fetched; the instruction is the caller's.
            unsafe { L::prefetch(self.from.wrapping_add(self.done * LANES)) };
            self.done += 1;
            if self.done == self.width {
                self.from = self.from.wrapping_add(self.stride);
                (self.done, self.runs) = (0, self.runs - 1);
            }
        }
    }
}
