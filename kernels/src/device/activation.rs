//! Activations of the feed-forward layer.

pub use crate::arguments::Gelu;
use crate::device::array::{Array, Slice, SliceMut};
use crate::device::call::Call;
use crate::device::error::Result;
use crate::device::kernel::Kernel;
use crate::device::launcher::Grid;

/// SwiGLU of `x`, `[rows, 2·width]` holding `gate | up`: `[rows, width]`, with the host's bits.
///
/// # Errors
/// If the length of `x` is not that of `rows` pairs, and errors of the device.
pub fn swiglu(x: Slice<f32>, rows: usize) -> Result<Array<f32>> {
    let width = x.len() / 2 / rows.max(1);
    x.check("the input of swiglu", 2 * rows * width)?;
    let mut y = x.gpu().array(rows * width)?;
    let call = Call::new(x.gpu(), Kernel::SWIGLU_FORWARD)
        .read(x)
        .write(&mut y.slice_mut())
        .with(rows)
        .with(width as u32);
    // SAFETY: the length of x was checked, and y holds half of it.
    unsafe { call.run(Grid::over((rows * width) as u64))? };
    Ok(y)
}

/// The gradient of the input of [`swiglu`], from that of its result.
///
/// # Errors
/// Arrays whose lengths do not fit, and errors of the device.
pub fn swiglu_backward(x: Slice<f32>, dy: Slice<f32>, rows: usize) -> Result<Array<f32>> {
    let width = x.len() / 2 / rows.max(1);
    x.check("the input of swiglu", 2 * rows * width)?;
    dy.check("the gradient of swiglu", rows * width)?;
    let mut dx = x.gpu().array(x.len())?;
    let call = Call::new(x.gpu(), Kernel::SWIGLU_BACKWARD)
        .read(x)
        .read(dy)
        .write(&mut dx.slice_mut())
        .with(rows)
        .with(width as u32);
    // SAFETY: the lengths were checked.
    unsafe { call.run(Grid::over(dy.len() as u64))? };
    Ok(dx)
}

/// GELU of each element.
///
/// # Errors
/// Errors of the device.
pub fn gelu(form: Gelu, x: Slice<f32>) -> Result<Array<f32>> {
    let mut y = x.gpu().array(x.len())?;
    let kernel = match form {
        Gelu::Exact => Kernel::GELU_FORWARD,
        Gelu::Tanh => Kernel::GELU_TANH_FORWARD,
    };
    let call = Call::new(x.gpu(), kernel)
        .read(x)
        .write(&mut y.slice_mut())
        .with(x.len());
    // SAFETY: both arrays have as many elements.
    unsafe { call.run(Grid::over(x.len() as u64))? };
    Ok(y)
}

/// Replaces the gradient of the result of [`gelu`], `d`, by that of the input.
///
/// # Errors
/// If the lengths differ, and errors of the device.
pub fn gelu_backward(form: Gelu, x: Slice<f32>, mut d: SliceMut<f32>) -> Result<()> {
    d.as_slice().check("the gradient of gelu", x.len())?;
    let kernel = match form {
        Gelu::Exact => Kernel::GELU_BACKWARD,
        Gelu::Tanh => Kernel::GELU_TANH_BACKWARD,
    };
    let call = Call::new(x.gpu(), kernel)
        .read(x)
        .write(&mut d)
        .with(x.len());
    // SAFETY: both arrays have as many elements.
    unsafe { call.run(Grid::over(x.len() as u64)) }
}
