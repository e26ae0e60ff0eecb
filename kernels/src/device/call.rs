//! Calls of kernels.

use crate::device::array::{Gpu, Number, Slice, SliceMut};
use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;
use crate::device::launcher::{Argument, Grid};

/// A call of a kernel, to which arguments are added in the order of its parameters.
pub(crate) struct Call<'a> {
    gpu: &'a Gpu,
    kernel: Kernel,
    arguments: Vec<Argument>,
    /// True while every array passed so far is on the device of the call.
    is_local: bool,
}

impl<'a> Call<'a> {
    /// A call without arguments.
    pub fn new(gpu: &'a Gpu, kernel: Kernel) -> Self {
        Self {
            gpu,
            kernel,
            arguments: Vec::with_capacity(16),
            is_local: true,
        }
    }

    /// An array that the kernel reads.
    pub fn read<T: Number>(mut self, slice: Slice<T>) -> Self {
        self.is_local &= slice.gpu().is_same(self.gpu);
        self.with(Argument::Pointer(slice.pointer()))
    }

    /// An array that the kernel reads, or the null pointer.
    pub fn read_or_null<T: Number>(self, slice: Option<Slice<T>>) -> Self {
        match slice {
            Some(slice) => self.read(slice),
            None => self.with(Argument::Pointer(0)),
        }
    }

    /// An array that the kernel changes.
    pub fn write<T: Number>(self, slice: &mut SliceMut<T>) -> Self {
        self.read(slice.as_slice())
    }

    /// An array that the kernel changes, or the null pointer.
    pub fn write_or_null<T: Number>(self, slice: Option<&mut SliceMut<T>>) -> Self {
        self.read_or_null(slice.map(|slice| slice.as_slice()))
    }

    /// A number.
    pub fn with(mut self, argument: impl Into<Argument>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Runs the kernel; an empty grid is no work.
    ///
    /// # Safety
    /// The arrays must have as many elements as the kernel reads and writes there for the other
    /// arguments and the grid.
    ///
    /// # Errors
    /// Arrays of another device, a grid beyond the limits of CUDA, and errors of the device.
    pub unsafe fn run(self, grid: Grid) -> Result<()> {
        if !self.is_local {
            return Err(KernelError::Devices {
                what: self.kernel.name,
            });
        }
        if grid.blocks.contains(&0) {
            return Ok(()); // a driver refuses an empty grid
        }
        grid.check(self.kernel)?;
        let launcher = &self.gpu.launcher;
        // SAFETY: the caller's promise is the launcher's condition.
        unsafe { launcher.launch(self.kernel, grid, &self.arguments) }
    }
}
