//! Prefetching: what a task brings into the second-level cache while it computes.

use std::ops::Range;

use super::lanes::{LANES, Lanes};
use super::matrix::Matrix;

/// Inputs between two prefetches of a panel.
pub const TURN: usize = 4;

/// Fewest passes over a round of panels for which prefetching the next round pays; with fewer, the
/// processor's own prefetching is better.
const LEAST_PASSES: usize = 3;

/// The panels of the next round, of which each tile prefetches a share.
#[derive(Clone, Copy)]
pub struct NextPanels {
    from: *const f32,
    /// Elements from one panel to the next.
    panel: usize,
    /// Elements between two prefetches; 0 to prefetch nothing.
    step: usize,
}

impl NextPanels {
    /// Panels that begin at `from`, `panel` elements apart, prefetched in `passes` passes of tiles.
    pub fn new(from: *const f32, panel: usize, passes: usize) -> Self {
        let step = match passes < LEAST_PASSES {
            true => 0,
            false => TURN * LANES / passes,
        };
        Self { from, panel, step }
    }

    /// The panels that remain after `passes` passes of `turns` prefetches each.
    pub fn after(self, passes: usize, turns: usize) -> Self {
        let from = self.from.wrapping_add(passes * turns * self.step);
        Self { from, ..self }
    }

    /// Prefetches a line of each of `N` panels.
    ///
    /// # Safety
    /// The processor must have the instructions of `L`.
    #[inline(always)]
    pub unsafe fn fetch<L: Lanes, const N: usize>(&self, turn: usize) {
        if self.step > 0 {
            for j in 0..N {
                // SAFETY: any address may be prefetched; the caller has the instruction.
                unsafe {
                    L::prefetch(self.from.wrapping_add(j * self.panel + turn * self.step));
                }
            }
        }
    }
}

/// Rows that will be packed next. They come from memory, and packing would wait for each of them.
pub struct NextRows {
    from: *const f32,
    /// Runs of neighbouring elements that are left.
    runs: usize,
    /// Elements from one run to the next.
    stride: usize,
    /// Lines of a run.
    width: usize,
    /// Lines of the current run that were prefetched.
    done: usize,
    /// Lines of one share.
    share: usize,
}

impl NextRows {
    /// Columns `columns` of `rows`, in `shares` shares.
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

    /// Prefetches the next share.
    ///
    /// # Safety
    /// The processor must have the instructions of `L`.
    #[inline(always)]
    pub unsafe fn fetch<L: Lanes>(&mut self) {
        for _ in 0..self.share {
            if self.runs == 0 {
                return;
            }
            // SAFETY: any address may be prefetched; the caller has the instruction.
            unsafe { L::prefetch(self.from.wrapping_add(self.done * LANES)) };
            self.done += 1;
            if self.done == self.width {
                self.from = self.from.wrapping_add(self.stride);
                (self.done, self.runs) = (0, self.runs - 1);
            }
        }
    }
}
