//! The global norm of gradients, and AdamW's step. Both have the host's bits.

use crate::device::array::Array;
use crate::device::error::Result;
use crate::device::kernel::Kernel;
use crate::device::launcher::{Argument, Grid};

/// Gradients whose squares are summed together, as in `sums_of_squares`.
const NORM_BLOCK: usize = 1 << 14;
/// Threads that sum one such block.
const NORM_LANES: u64 = 8;

/// The factors of one step for one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// Factor of the gradient by which the global norm is clipped.
    pub clip: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// lr / (1 − β₁ᵗ)
    pub rate: f32,
    /// 1 / √(1 − β₂ᵗ)
    pub root: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// 1 − lr · decay
    pub keep: f32,
}

/// The norm of all gradients together.
///
/// # Errors
/// Errors of the device.
pub fn global_norm(gradients: &Array<f32>) -> Result<f64> {
    let blocks = gradients.len().div_ceil(NORM_BLOCK);
    let sums = gradients.gpu().array::<f64>(blocks)?;
    let len = Argument::U64(gradients.len() as u64);
    let arguments = [gradients.argument(), sums.argument(), len];
    let grid = Grid::over(blocks as u64 * NORM_LANES);
    // SAFETY: `sums` has a number for each block of the gradients.
    unsafe {
        let gpu = gradients.gpu();
        gpu.launch(Kernel::SUMS_OF_SQUARES, grid, &arguments)?;
    }
    Ok(sums.download()?.iter().sum::<f64>().sqrt())
}

/// A parameter and the two moments of its gradient, all of one length.
pub struct Parameter<'a> {
    /// Values.
    pub values: &'a mut Array<f32>,
    /// Gradient.
    pub gradients: &'a Array<f32>,
    /// First moment.
    pub first: &'a mut Array<f32>,
    /// Second moment.
    pub second: &'a mut Array<f32>,
    /// The bits of a copy of the values in bfloat16, written along with them.
    pub copy: Option<&'a mut Array<u16>>,
}

/// One step of AdamW (Loshchilov and Hutter 2019, algorithm 2).
///
/// # Errors
/// If the lengths differ, and errors of the device.
pub fn step(parameter: Parameter, f: Factors) -> Result<()> {
    let Parameter {
        values,
        gradients,
        first,
        second,
        copy,
    } = parameter;
    let len = values.len();
    gradients.check("the gradient", len)?;
    first.check("the first moment", len)?;
    second.check("the second moment", len)?;
    if let Some(copy) = &copy {
        copy.check("the copy in bfloat16", len)?;
    }
    let arguments = [
        values.argument(),
        gradients.argument(),
        first.argument(),
        second.argument(),
        Argument::Pointer(copy.map_or(0, |copy| copy.pointer())),
        Argument::U64(len as u64),
        f.clip.into(),
        f.beta1.into(),
        f.beta2.into(),
        f.rate.into(),
        f.root.into(),
        f.epsilon.into(),
        f.keep.into(),
    ];
    // SAFETY: all arrays have `len` elements.
    unsafe {
        let gpu = values.gpu();
        gpu.launch(Kernel::ADAMW, Grid::over(len as u64), &arguments)
    }
}
