//! RMSNorm and LayerNorm of groups of columns.
//!
//! The forward pass and the parameters' gradients have the host's bits. The gradient of the input
//! sums a row in 16 lanes instead of one.

pub use crate::arguments::Groups;
use crate::device::array::{Array, Slice, SliceMut};
use crate::device::call::Call;
use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;
use crate::device::launcher::Grid;
use crate::device::rows::add_rows;

/// Threads that work on one group.
const LANES: u64 = 16;
/// Rows whose parameter gradients are summed together, as in `norm_sums`.
const ROWS_PER_SUM: usize = 64;

/// A norm's parameters.
#[derive(Clone, Copy)]
pub enum Parameters<'a> {
    /// RMSNorm.
    Rms {
        /// `[width]`
        weight: Slice<'a, f32>,
    },
    /// LayerNorm.
    Layer {
        /// `[width]`
        weight: Slice<'a, f32>,
        /// `[width]`
        bias: Slice<'a, f32>,
    },
}

/// Gradients of a norm's parameters, to which a backward pass adds.
pub enum Gradients<'a> {
    /// RMSNorm.
    Rms {
        /// `[width]`
        weight: SliceMut<'a, f32>,
    },
    /// LayerNorm.
    Layer {
        /// `[width]`
        weight: SliceMut<'a, f32>,
        /// `[width]`
        bias: SliceMut<'a, f32>,
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

    /// Adds the sizes of the groups to the arguments of a call.
    fn of<'a>(&self, call: Call<'a>) -> Call<'a> {
        let sizes = [self.columns, self.first, self.count, self.width];
        sizes.into_iter().fold(call.with(self.rows), Call::with)
    }

    /// One half warp for each group of all rows.
    fn grid(&self) -> Grid {
        Grid::over(self.items() * LANES)
    }

    /// Checks that the groups lie within the columns, and that `x` has as many rows.
    fn check(&self, x: Slice<f32>) -> Result<()> {
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
    fn weight(&self) -> Slice<'a, f32> {
        match self {
            Self::Rms { weight } | Self::Layer { weight, .. } => *weight,
        }
    }

    fn bias(&self) -> Option<Slice<'a, f32>> {
        match self {
            Self::Rms { .. } => None,
            Self::Layer { bias, .. } => Some(*bias),
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

impl<'a> Gradients<'a> {
    /// The gradients of weight and bias.
    fn split(self) -> (SliceMut<'a, f32>, Option<SliceMut<'a, f32>>) {
        match self {
            Self::Rms { weight } => (weight, None),
            Self::Layer { weight, bias } => (weight, Some(bias)),
        }
    }
}

/// The normalised rows, `[rows, columns]`; columns outside the groups are copied.
///
/// # Errors
/// Arrays whose lengths do not fit, and errors of the device.
pub fn forward(
    x: Slice<f32>,
    parameters: Parameters,
    groups: Groups,
    eps: f32,
) -> Result<Array<f32>> {
    groups.check(x)?;
    parameters.check(&groups)?;
    let mut y = x.gpu().array(x.len())?;
    let arrays = Call::new(x.gpu(), Kernel::NORM_FORWARD)
        .read(x)
        .write(&mut y.slice_mut())
        .read(parameters.weight())
        .read_or_null(parameters.bias());
    let call = groups.of(arrays).with(eps);
    // SAFETY: the lengths of x, y, weight and bias were checked against the groups.
    unsafe { call.run(groups.grid())? };
    Ok(y)
}

/// Replaces the gradient of the result, `d`, by that of the input `x`, and adds to the gradients of
/// the parameters, where there are some.
///
/// # Errors
/// Arrays whose lengths do not fit, and errors of the device.
pub fn backward(
    x: Slice<f32>,
    mut d: SliceMut<f32>,
    parameters: Parameters,
    gradients: Option<Gradients>,
    groups: Groups,
    eps: f32,
) -> Result<()> {
    groups.check(x)?;
    d.as_slice().check("a norm's gradient", groups.len())?;
    parameters.check(&groups)?;
    let layer = u32::from(parameters.bias().is_some());
    let stored = statistics(x, groups, eps, layer)?;
    if let Some(gradients) = gradients {
        if parameters.bias().is_some() != matches!(gradients, Gradients::Layer { .. }) {
            return Err(KernelError::Launch {
                kernel: Kernel::NORM_BACKWARD.name,
                message: "parameters and gradients are of different norms".to_owned(),
            });
        }
        add_sums(x, d.as_slice(), stored.slice(), gradients, groups)?;
    }
    let arrays = Call::new(x.gpu(), Kernel::NORM_BACKWARD)
        .read(x)
        .write(&mut d)
        .read(parameters.weight())
        .read(stored.slice());
    let call = groups.of(arrays).with(layer);
    // SAFETY: the lengths were checked, and `stored` holds two numbers for each group.
    unsafe { call.run(groups.grid()) }
}

/// Mean and scale of each group, `[rows, groups, 2]`.
fn statistics(x: Slice<f32>, groups: Groups, eps: f32, layer: u32) -> Result<Array<f32>> {
    let mut stored = x.gpu().array(2 * groups.rows * groups.count as usize)?;
    let arrays = Call::new(x.gpu(), Kernel::NORM_STATISTICS)
        .read(x)
        .write(&mut stored.slice_mut());
    let call = groups.of(arrays).with(eps).with(layer);
    // SAFETY: the caller checked x, and `stored` holds two numbers for each group.
    unsafe { call.run(groups.grid())? };
    Ok(stored)
}

/// Adds to the gradients of the parameters: sums of each chunk of rows, and these in order.
fn add_sums(
    x: Slice<f32>,
    d: Slice<f32>,
    stored: Slice<f32>,
    gradients: Gradients,
    groups: Groups,
) -> Result<()> {
    let (weight, bias) = gradients.split();
    for gradient in [Some(&weight), bias.as_ref()].into_iter().flatten() {
        gradient
            .as_slice()
            .check("the gradient of a norm's parameter", groups.width as usize)?;
    }
    let chunks = groups.rows.div_ceil(ROWS_PER_SUM);
    let parts = || x.gpu().array::<f32>(chunks * groups.width as usize);
    let mut weights = parts()?;
    let mut biases = bias.is_some().then(parts).transpose()?;
    let arrays = Call::new(x.gpu(), Kernel::NORM_SUMS)
        .read(x)
        .read(d)
        .read(stored)
        .write(&mut weights.slice_mut())
        .write_or_null(biases.as_mut().map(Array::slice_mut).as_mut());
    let mut grid = Grid::over(groups.width.into());
    grid.blocks[1] = chunks as u32;
    // SAFETY: the caller checked x and d, and the parts hold a row of `width` for each chunk.
    unsafe { groups.of(arrays).run(grid)? };
    add_rows(weight, weights.slice(), chunks)?;
    match (bias, biases) {
        (Some(bias), Some(biases)) => add_rows(bias, biases.slice(), chunks),
        _ => Ok(()),
    }
}
