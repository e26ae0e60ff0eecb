//! RMSNorm and LayerNorm of groups of columns.
//!
//! The forward pass and the parameters' gradients have the host's bits. The gradient of the input
//! sums a row in 16 lanes instead of one.

use crate::device::array::{Array, Gpu};
use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;
use crate::device::launcher::{Argument, Grid};
use crate::device::rows::add_rows;

/// Threads that work on one group.
const LANES: u64 = 16;
/// Rows whose parameter gradients are summed together, as in `norm_sums`.
const ROWS_PER_SUM: usize = 64;

/// The groups of columns that are normalised, and the rows that hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: u32,
    /// First column of the first group.
    pub first: u32,
    /// Groups of a row.
    pub count: u32,
    /// Columns of a group.
    pub width: u32,
}

/// A norm's parameters.
#[derive(Clone, Copy)]
pub enum Parameters<'a> {
    /// RMSNorm.
    Rms {
        /// `[width]`
        weight: &'a Array<f32>,
    },
    /// LayerNorm.
    Layer {
        /// `[width]`
        weight: &'a Array<f32>,
        /// `[width]`
        bias: &'a Array<f32>,
    },
}

/// Gradients of a norm's parameters, to which a backward pass adds.
pub enum Gradients<'a> {
    /// RMSNorm.
    Rms {
        /// `[width]`
        weight: &'a mut Array<f32>,
    },
    /// LayerNorm.
    Layer {
        /// `[width]`
        weight: &'a mut Array<f32>,
        /// `[width]`
        bias: &'a mut Array<f32>,
    },
}

impl Groups {
    /// Elements of the matrix.
    fn len(&self) -> usize {
        self.rows * self.columns as usize
    }

    /// Groups of all rows.
    fn items(&self) -> u64 {
        self.rows as u64 * u64::from(self.count)
    }

    /// The arguments of a kernel, with the sizes of the groups between `arrays` and `settings`.
    fn arguments(&self, arrays: &[Argument], settings: &[Argument]) -> Vec<Argument> {
        let sizes = [self.columns, self.first, self.count, self.width].map(Argument::U32);
        [arrays, &[Argument::U64(self.rows as u64)], &sizes, settings].concat()
    }

    /// Checks that the groups lie within the columns, and that `x` has as many rows.
    fn check(&self, x: &Array<f32>) -> Result<()> {
        let end = u64::from(self.first) + u64::from(self.count) * u64::from(self.width);
        if end > u64::from(self.columns) {
            return Err(KernelError::Length {
                what: "the columns of a norm's groups",
                found: self.columns as usize,
                expected: end as usize,
            });
        }
        x.check("a norm's input", self.len())
    }
}

impl<'a> Parameters<'a> {
    fn weight(&self) -> &'a Array<f32> {
        match self {
            Self::Rms { weight } | Self::Layer { weight, .. } => weight,
        }
    }

    fn bias(&self) -> Option<&'a Array<f32>> {
        match self {
            Self::Rms { .. } => None,
            Self::Layer { bias, .. } => Some(bias),
        }
    }

    fn check(&self, groups: &Groups) -> Result<()> {
        self.weight()
            .check("a norm's weight", groups.width as usize)?;
        match self.bias() {
            Some(bias) => bias.check("a norm's bias", groups.width as usize),
            None => Ok(()),
        }
    }
}

/// The normalised rows, `[rows, columns]`; columns outside the groups are copied.
///
/// # Errors
/// Arrays whose lengths do not fit, and errors of the device.
pub fn forward(
    x: &Array<f32>,
    parameters: Parameters,
    groups: Groups,
    eps: f32,
) -> Result<Array<f32>> {
    groups.check(x)?;
    parameters.check(&groups)?;
    let y = x.gpu().array(x.len())?;
    let bias = parameters.bias().map_or(0, Array::pointer);
    let arguments = groups.arguments(
        &[
            x.argument(),
            y.argument(),
            parameters.weight().argument(),
            Argument::Pointer(bias),
        ],
        &[eps.into()],
    );
    let grid = Grid::over(groups.items() * LANES);
    // SAFETY: the lengths of x, y, weight and bias were checked against the groups.
    unsafe { x.gpu().launch(Kernel::NORM_FORWARD, grid, &arguments)? };
    Ok(y)
}

/// Replaces the gradient of the result, `d`, by that of the input `x`, and adds to the gradients of
/// the parameters.
///
/// # Errors
/// Arrays whose lengths do not fit, and errors of the device.
pub fn backward(
    x: &Array<f32>,
    d: &mut Array<f32>,
    parameters: Parameters,
    gradients: Gradients,
    groups: Groups,
    eps: f32,
) -> Result<()> {
    groups.check(x)?;
    d.check("a norm's gradient", groups.len())?;
    parameters.check(&groups)?;
    if parameters.bias().is_some() != matches!(gradients, Gradients::Layer { .. }) {
        return Err(KernelError::Launch {
            kernel: Kernel::NORM_BACKWARD.name,
            message: "parameters and gradients are of different norms".to_owned(),
        });
    }
    let layer = u32::from(parameters.bias().is_some());
    let stored = statistics(x, groups, eps, layer)?;
    match gradients {
        Gradients::Rms { weight } => {
            weight.check("the gradient of a norm's weight", groups.width as usize)?;
            let ([parts], sums) = sums(x, d, &stored, groups, |gpu, len| Ok([gpu.array(len)?]))?;
            add_rows(weight, &parts, sums)?;
        }
        Gradients::Layer { weight, bias } => {
            for gradient in [&*weight, &*bias] {
                gradient.check("the gradient of a norm's parameter", groups.width as usize)?;
            }
            let both = |gpu: &Gpu, len| Ok([gpu.array(len)?, gpu.array(len)?]);
            let ([weights, biases], sums) = sums(x, d, &stored, groups, both)?;
            add_rows(weight, &weights, sums)?;
            add_rows(bias, &biases, sums)?;
        }
    }
    let arguments = groups.arguments(
        &[
            x.argument(),
            d.argument(),
            parameters.weight().argument(),
            stored.argument(),
        ],
        &[layer.into()],
    );
    let grid = Grid::over(groups.items() * LANES);
    // SAFETY: the lengths were checked, and `stored` holds two numbers for each group.
    unsafe { x.gpu().launch(Kernel::NORM_BACKWARD, grid, &arguments) }
}

/// Mean and scale of each group, `[rows, groups, 2]`.
fn statistics(x: &Array<f32>, groups: Groups, eps: f32, layer: u32) -> Result<Array<f32>> {
    let stored = x.gpu().array(2 * groups.rows * groups.count as usize)?;
    let arguments = groups.arguments(
        &[x.argument(), stored.argument()],
        &[eps.into(), layer.into()],
    );
    let grid = Grid::over(groups.items() * LANES);
    // SAFETY: the caller checked x, and `stored` holds two numbers for each group.
    unsafe { x.gpu().launch(Kernel::NORM_STATISTICS, grid, &arguments)? };
    Ok(stored)
}

/// The sums of each chunk of rows, `[chunks, width]`, for the weight and, where there is one, for
/// the bias; and the number of chunks.
fn sums<const N: usize>(
    x: &Array<f32>,
    d: &Array<f32>,
    stored: &Array<f32>,
    groups: Groups,
    arrays: impl FnOnce(&Gpu, usize) -> Result<[Array<f32>; N]>,
) -> Result<([Array<f32>; N], usize)> {
    let chunks = groups.rows.div_ceil(ROWS_PER_SUM);
    let parts = arrays(x.gpu(), chunks * groups.width as usize)?;
    let part = |index: usize| Argument::Pointer(parts.get(index).map_or(0, Array::pointer));
    let arguments = groups.arguments(
        &[
            x.argument(),
            d.argument(),
            stored.argument(),
            part(0),
            part(1),
        ],
        &[],
    );
    let mut grid = Grid::over(groups.width.into());
    grid.blocks[1] = chunks as u32;
    // SAFETY: the caller checked x and d, and the parts hold a row of `width` for each chunk.
    unsafe { x.gpu().launch(Kernel::NORM_SUMS, grid, &arguments)? };
    Ok((parts, chunks))
}
