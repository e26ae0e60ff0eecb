//! Rotary position embedding.

pub use crate::arguments::Direction;
use crate::device::array::{Slice, SliceMut};
use crate::device::call::Call;
use crate::device::error::Result;
use crate::device::kernel::Kernel;
use crate::device::launcher::Grid;

/// Rotates the first `heads` heads of each row of `x`, `[rows, columns]`, in place. `cosines` and
/// `sines` are `[rows, half]`, and a head has `2·half` columns.
///
/// # Errors
/// Arrays whose lengths do not fit, and errors of the device.
pub fn rotate(
    mut x: SliceMut<f32>,
    [cosines, sines]: [Slice<f32>; 2],
    rows: usize,
    heads: u32,
    half: u32,
    direction: Direction,
) -> Result<()> {
    let columns = x.len() / rows.max(1);
    let heads_of_rows = rows * 2 * heads as usize * half as usize;
    x.as_slice().check("the rows of rope", rows * columns)?;
    x.as_slice()
        .check_least("the heads of rope", heads_of_rows)?;
    cosines.check("the cosines of rope", rows * half as usize)?;
    sines.check("the sines of rope", rows * half as usize)?;
    let call = Call::new(x.gpu(), Kernel::ROPE)
        .write(&mut x)
        .read(cosines)
        .read(sines)
        .with(rows)
        .with(columns as u32)
        .with(heads)
        .with(half)
        .with(match direction {
            Direction::Forward => 1.0f32,
            Direction::Backward => -1.0,
        });
    let pairs = rows as u64 * u64::from(heads) * u64::from(half);
    // SAFETY: the lengths were checked.
    unsafe { call.run(Grid::over(pairs)) }
}
