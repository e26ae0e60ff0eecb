//! Products on the processor's matrix unit (Intel AMX), which multiplies tiles of bfloat16 and adds them up in `f32`.
//!
//! An `f32` is the sum of three bfloat16 ([`split`]), and a product of two is, to half a unit of its last place, the sum of six of the
//! nine products of their parts (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For
//! Higher-Precision Computations"). So a product is as accurate as a chain of fused multiply-adds, for 6/16 of the time.
//!
//! The order of an element's sums is fixed here too, and by the inputs alone: thirty-two at a time, and for these the six pairs of
//! parts in one order; of each, the unit adds up the even and the odd inputs in a chain each, adds the two, and adds their sum to the
//! element. `definition.rs` says it an element at a time. A row has the same bits alone and in any batch, but not those of the
//! [kernel](super::kernel).
//!
//! A task works on a [square](squares) of its left-hand side at a time: it splits the rows, where the task before has not done so, then
//! [sweeps](sweep) over the panels, four tiles of the destination in a [job](unit).

#[cfg(test)]
pub mod definition;
mod split;
mod squares;
mod sweep;
mod unit;
mod window;

use super::FEW_ROWS;
use super::factor::Source;
use super::kernel::Task;
use super::lanes::{LANES, Line};
pub use split::split_panels;
use split::split_rows;
use squares::{depth, squares};
use sweep::{Scratch, Sweep};
use unit::Shape;
pub use unit::is_usable;

/// Inputs that a tile takes.
const CHUNK: usize = 32;
/// Lines of a tile: its rows.
const TILE: usize = 16;
/// Lines of the three tiles of parts.
const BLOCK: usize = 3 * TILE;
/// Tiles of a job's destination.
const TILES: usize = 4;

/// Lines of a panel of parts.
pub fn lines(inputs: usize) -> usize {
    inputs.div_ceil(CHUNK) * BLOCK
}

/// Runs tasks; `buffer` holds the parts of their rows and panels.
///
/// # Safety
/// As for [`super::kernel::run`], and [`is_usable`] must have said so.
pub unsafe fn run(tasks: &[Task], buffer: &mut Vec<Line>) {
    for (i, task) in tasks.iter().enumerate() {
        let rows_are_split = i > 0 && share_rows(&tasks[i - 1], task);
        // SAFETY: the caller's.
        unsafe { run_task(task, rows_are_split, buffer) };
    }
}

/// Whether the parts of the first one's rows, which its run leaves at the buffer's front, are those of the second one's.
fn share_rows(first: &Task, second: &Task) -> bool {
    let is_one_square = |task: &Task| squares(task, depth(task)).count() == 1;
    let as_deep = depth(first) == depth(second);
    first.a.is_same_window(&second.a) && as_deep && is_one_square(first) && is_one_square(second)
}

/// Runs a task; where `rows_are_split`, the buffer holds the parts of its rows at the front.
///
/// # Safety
/// As for [`run`].
unsafe fn run_task(task: &Task, rows_are_split: bool, buffer: &mut Vec<Line>) {
    task.check();
    let shape = Shape::of(task.a.height());
    let depth = depth(task);
    let Scratch { rows, panels, edge } = Scratch::divide(buffer, task, shape, depth);
    // SAFETY: the caller's.
    unsafe { unit::configure(shape.tile_rows(task.a.height())) };
    let mut squares = squares(task, depth).peekable();
    let mut split_from = None;
    while let Some(square) = squares.next() {
        let (inputs, sweep) = (square.inputs.clone(), Sweep::new(task, shape, &square));
        let rows = &mut rows[..sweep.lines_of_rows()];
        // SAFETY: the caller's.
        unsafe {
            if let Source::Unpacked(b) = task.b.source()
                && split_from.replace(inputs.start) != Some(inputs.start)
            {
                let panels = &mut panels[..b.width().div_ceil(LANES) * lines(inputs.len())];
                split_panels(b.t(), 0, inputs.clone(), panels);
            }
            if !rows_are_split {
                split_rows(square.of(task.a), inputs, rows);
            }
            sweep.run(rows, panels, edge, squares.peek());
        }
    }
    // SAFETY: as above.
    unsafe { unit::release() };
}
