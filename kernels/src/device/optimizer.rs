//! The global norm of gradients, and AdamW's step. Both have the host's bits.

pub use crate::arguments::Factors;
use crate::device::array::{Slice, SliceMut};
use crate::device::call::Call;
use crate::device::error::Result;
use crate::device::kernel::Kernel;
use crate::device::launcher::Grid;

/// Gradients whose squares are summed together, as in `sums_of_squares`.
const NORM_BLOCK: usize = 1 << 14;
/// Threads that sum one such block.
const NORM_LANES: u64 = 8;

/// The norm of all gradients together.
///
/// # Errors
/// Errors of the device.
pub fn global_norm(gradients: Slice<f32>) -> Result<f64> {
    let blocks = gradients.len().div_ceil(NORM_BLOCK);
    let mut sums = gradients.gpu().array::<f64>(blocks)?;
    let call = Call::new(gradients.gpu(), Kernel::SUMS_OF_SQUARES)
        .read(gradients)
        .write(&mut sums.slice_mut())
        .with(gradients.len());
    // SAFETY: `sums` has a number for each block of the gradients.
    unsafe { call.run(Grid::over(blocks as u64 * NORM_LANES))? };
    Ok(sums.download()?.iter().sum::<f64>().sqrt())
}

/// A parameter and the two moments of its gradient, all of one length.
pub struct Parameter<'a> {
    /// Values.
    pub values: SliceMut<'a, f32>,
    /// Gradient.
    pub gradients: Slice<'a, f32>,
    /// First moment.
    pub first: SliceMut<'a, f32>,
    /// Second moment.
    pub second: SliceMut<'a, f32>,
    /// The bits of a copy of the values in bfloat16, written along with them.
    pub copy: Option<SliceMut<'a, u16>>,
}

/// One step of AdamW (Loshchilov and Hutter 2019, algorithm 2).
///
/// # Errors
/// If the lengths differ, and errors of the device.
pub fn step(parameter: Parameter, f: Factors) -> Result<()> {
    let Parameter {
        mut values,
        gradients,
        mut first,
        mut second,
        mut copy,
    } = parameter;
    let len = values.len();
    gradients.check("the gradient", len)?;
    first.as_slice().check("the first moment", len)?;
    second.as_slice().check("the second moment", len)?;
    if let Some(copy) = &copy {
        copy.as_slice().check("the copy in bfloat16", len)?;
    }
    let arrays = Call::new(values.gpu(), Kernel::ADAMW)
        .write(&mut values)
        .read(gradients)
        .write(&mut first)
        .write(&mut second)
        .write_or_null(copy.as_mut())
        .with(len);
    let factors = [f.clip, f.beta1, f.beta2, f.rate, f.root, f.epsilon, f.keep];
    let call = factors.into_iter().fold(arrays, Call::with);
    // SAFETY: all arrays have `len` elements.
    unsafe { call.run(Grid::over(len as u64)) }
}
