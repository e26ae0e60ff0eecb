//! Products on the processor's matrix unit (Intel AMX), which multiplies tiles of bfloat16 and adds
//! up in `f32`.
//!
//! An `f32` is the sum of three bfloat16 parts ([`parts`](super::parts)). A product of two is, to
//! half a unit in its last place, the sum of six of the nine products of their parts (Henry, Tang
//! and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For
//! Higher-Precision Computations"). It is as accurate as a chain of fused multiply-adds, in 6/16 of
//! the time.
//!
//! The order of an element's sums is fixed here too, and depends on the inputs alone: thirty-two at
//! a time, and for these the six pairs of parts in one order. For each pair, the unit adds up the
//! even and the odd inputs in a chain each, adds the two chains, and adds their sum to the element.
//! `definition.rs` states this for one element. A row has the same bits alone and in any batch, but
//! not those of [`chains`](super::chains).
//!
//! A task works on one [square](squares) of its left-hand side at a time: it splits the rows,
//! unless the previous task has left them split, then [sweeps](sweep) over the panels, four tiles
//! of the destination per [job](unit). Processors without the unit [emulate](emulation) jobs.

#[cfg(test)]
pub mod definition;
mod emulation;
mod squares;
mod sweep;
mod unit;
mod window;

use super::factor::FactorSource;
use super::lanes::{LANES, Line};
use super::parts::{self, split_panels, split_rows};
use super::task::ProductTask;
use squares::{depth, squares};
use sweep::{Sweep, TileBuffers};
use unit::TileShape;

/// Runs tasks; `buffer` holds the parts of their rows and panels.
///
/// # Safety
/// As for [`super::chains::run`]; the processor must be able to run this kernel
/// ([`super::ProductKernel::available`]).
pub unsafe fn run(tasks: &[ProductTask], buffer: &mut Vec<Line>) {
    for (i, task) in tasks.iter().enumerate() {
        let rows_are_split = i > 0 && share_rows(&tasks[i - 1], task);
        // SAFETY: the caller keeps this function's contract.
        unsafe { run_task(task, rows_are_split, buffer) };
    }
}

/// Whether the second task can use the parts of rows that the first one leaves at the front of the
/// buffer.
fn share_rows(first: &ProductTask, second: &ProductTask) -> bool {
    let is_one_square = |task: &ProductTask| squares(task, depth(task)).count() == 1;
    let as_deep = depth(first) == depth(second);
    first.a.is_same_window(&second.a) && as_deep && is_one_square(first) && is_one_square(second)
}

/// Runs a task; if `rows_are_split`, the front of the buffer holds the parts of its rows already.
///
/// # Safety
/// As for [`run`].
unsafe fn run_task(task: &ProductTask, rows_are_split: bool, buffer: &mut Vec<Line>) {
    task.check();
    let shape = TileShape::of(task.a.height());
    let depth = depth(task);
    let TileBuffers { rows, panels, edge } = TileBuffers::divide(buffer, task, shape, depth);
    // SAFETY: the processor has the unit or emulates it.
    unsafe { unit::configure(shape.tile_rows(task.a.height())) };
    let mut squares = squares(task, depth).peekable();
    let mut split_from = None;
    while let Some(square) = squares.next() {
        let (inputs, sweep) = (square.inputs.clone(), Sweep::new(task, shape, &square));
        let rows = &mut rows[..sweep.lines_of_rows()];
        // SAFETY: the caller keeps this function's contract.
        unsafe {
            if let FactorSource::Unpacked(b) = task.b.source()
                && split_from.replace(inputs.start) != Some(inputs.start)
            {
                let panels = &mut panels[..b.width().div_ceil(LANES) * parts::lines(inputs.len())];
                split_panels(b.t(), 0, inputs.clone(), panels);
            }
            if !rows_are_split {
                split_rows(square.of(task.a), inputs, rows);
            }
            sweep.run(rows, panels, edge, squares.peek());
        }
    }
    // SAFETY: the processor has the unit or emulates it.
    unsafe { unit::release() };
}
