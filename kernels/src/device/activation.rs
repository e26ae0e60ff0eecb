//! Activations of the feed-forward layer.

use crate::device::array::Array;
use crate::device::error::Result;
use crate::device::kernel::Kernel;
use crate::device::launcher::{Argument, Grid};

/// A form of GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// By the error function. Devices round it differently, in the last digits.
    Exact,
    /// By tanh, with the host's bits.
    Tanh,
}

/// SwiGLU of `x`, `[rows, 2·width]` holding `gate | up`: `[rows, width]`, with the host's bits.
///
/// # Errors
/// If the length of `x` is not that of `rows` pairs, and errors of the device.
pub fn swiglu(x: &Array<f32>, rows: usize) -> Result<Array<f32>> {
    let width = x.len() / 2 / rows.max(1);
    x.check("the input of swiglu", 2 * rows * width)?;
    let y = x.gpu().array(rows * width)?;
    let sizes = [Argument::U64(rows as u64), Argument::U32(width as u32)];
    let arguments = [x.argument(), y.argument(), sizes[0], sizes[1]];
    let grid = Grid::over((rows * width) as u64);
    // SAFETY: the length of x was checked, and y holds half of it.
    unsafe { x.gpu().launch(Kernel::SWIGLU_FORWARD, grid, &arguments)? };
    Ok(y)
}

/// The gradient of the input of [`swiglu`], from that of its result.
///
/// # Errors
/// Arrays whose lengths do not fit, and errors of the device.
pub fn swiglu_backward(x: &Array<f32>, dy: &Array<f32>, rows: usize) -> Result<Array<f32>> {
    let width = x.len() / 2 / rows.max(1);
    x.check("the input of swiglu", 2 * rows * width)?;
    dy.check("the gradient of swiglu", rows * width)?;
    let dx = x.gpu().array(x.len())?;
    let arguments = [
        x.argument(),
        dy.argument(),
        dx.argument(),
        Argument::U64(rows as u64),
        Argument::U32(width as u32),
    ];
    let grid = Grid::over(dy.len() as u64);
    // SAFETY: the lengths were checked.
    unsafe { x.gpu().launch(Kernel::SWIGLU_BACKWARD, grid, &arguments)? };
    Ok(dx)
}

impl Gelu {
    /// GELU of each element.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn forward(self, x: &Array<f32>) -> Result<Array<f32>> {
        let y = x.gpu().array(x.len())?;
        let kernel = match self {
            Self::Exact => Kernel::GELU_FORWARD,
            Self::Tanh => Kernel::GELU_TANH_FORWARD,
        };
        let arguments = [x.argument(), y.argument(), Argument::U64(x.len() as u64)];
        // SAFETY: both arrays have as many elements.
        unsafe {
            x.gpu()
                .launch(kernel, Grid::over(x.len() as u64), &arguments)?;
        }
        Ok(y)
    }

    /// Replaces the gradient of the result, `d`, by that of the input.
    ///
    /// # Errors
    /// If the lengths differ, and errors of the device.
    pub fn backward(self, x: &Array<f32>, d: &mut Array<f32>) -> Result<()> {
        d.check("the gradient of gelu", x.len())?;
        let kernel = match self {
            Self::Exact => Kernel::GELU_BACKWARD,
            Self::Tanh => Kernel::GELU_TANH_BACKWARD,
        };
        let arguments = [x.argument(), d.argument(), Argument::U64(x.len() as u64)];
        // SAFETY: both arrays have as many elements.
        unsafe {
            x.gpu()
                .launch(kernel, Grid::over(x.len() as u64), &arguments)
        }
    }
}
