//! Rotary position embedding.

use crate::device::array::Array;
use crate::device::error::Result;
use crate::device::kernel::Kernel;
use crate::device::launcher::{Argument, Grid};

/// The direction of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the angles: the forward pass.
    Forward,
    /// By the opposite angles: the backward pass.
    Backward,
}

/// Rotates the first `heads` heads of each row of `x`, `[rows, columns]`, in place. `cosines` and
/// `sines` are `[rows, half]`, and a head has `2·half` columns.
///
/// # Errors
/// Arrays whose lengths do not fit, and errors of the device.
pub fn rotate(
    x: &mut Array<f32>,
    [cosines, sines]: [&Array<f32>; 2],
    rows: usize,
    heads: u32,
    half: u32,
    direction: Direction,
) -> Result<()> {
    let columns = x.len() / rows.max(1);
    x.check("the rows of rope", rows * columns)?;
    x.check_least(
        "the heads of rope",
        rows * 2 * heads as usize * half as usize,
    )?;
    cosines.check("the cosines of rope", rows * half as usize)?;
    sines.check("the sines of rope", rows * half as usize)?;
    let arguments = [
        x.argument(),
        cosines.argument(),
        sines.argument(),
        Argument::U64(rows as u64),
        Argument::U32(columns as u32),
        heads.into(),
        half.into(),
        Argument::F32(match direction {
            Direction::Forward => 1.0,
            Direction::Backward => -1.0,
        }),
    ];
    let grid = Grid::over(rows as u64 * u64::from(heads) * u64::from(half));
    // SAFETY: the lengths were checked.
    unsafe { x.gpu().launch(Kernel::ROPE, grid, &arguments) }
}
