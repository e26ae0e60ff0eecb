//! Arrays in device memory.

use std::marker::PhantomData;
use std::mem::size_of;
use std::sync::Arc;

use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;
use crate::device::launcher::{Allocation, Argument, Grid, Launcher};

/// A device. Clones share it.
#[derive(Clone)]
pub struct Gpu {
    launcher: Arc<dyn Launcher>,
}

/// Element types of arrays: plain numbers for which every pattern of bits is a value.
pub trait Number: Copy + Default + sealed::Sealed + 'static {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

impl Number for f32 {}
impl Number for f64 {}
impl Number for u16 {}
impl Number for u32 {}
impl Number for u64 {}

/// An array in device memory, freed when it is dropped.
pub struct Array<T> {
    gpu: Gpu,
    allocation: Allocation,
    len: usize,
    number: PhantomData<T>,
}

impl Gpu {
    /// The device behind a launcher.
    pub fn new(launcher: Arc<dyn Launcher>) -> Self {
        Self { launcher }
    }

    /// An array with undefined contents.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn array<T: Number>(&self, len: usize) -> Result<Array<T>> {
        let bytes = len.saturating_mul(size_of::<T>());
        Ok(Array {
            gpu: self.clone(),
            allocation: self.launcher.allocate(bytes)?,
            len,
            number: PhantomData,
        })
    }

    /// An array with these elements.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn upload<T: Number>(&self, from: &[T]) -> Result<Array<T>> {
        let array = self.array(from.len())?;
        // SAFETY: numbers have no padding, and the array has as many bytes.
        unsafe {
            let bytes = std::slice::from_raw_parts(from.as_ptr().cast(), size_of_val(from));
            self.launcher.upload(array.pointer(), bytes)?;
        }
        Ok(array)
    }

    /// Runs a kernel.
    ///
    /// # Safety
    /// The pointers among the arguments must be valid for the kernel: see [`Launcher::launch`].
    ///
    /// # Errors
    /// A grid beyond the limits of CUDA, and the errors of [`Launcher::launch`].
    pub(crate) unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(()); // a driver refuses an empty grid
        }
        grid.check(kernel)?;
        // SAFETY: the caller's promise is the launcher's condition.
        unsafe { self.launcher.launch(kernel, grid, arguments) }
    }
}

impl<T: Number> Array<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if the array has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device that holds the array.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The elements, on the host.
    ///
    /// # Errors
    /// Errors of the device, and of the kernels before.
    pub fn download(&self) -> Result<Vec<T>> {
        let mut elements = vec![T::default(); self.len];
        // SAFETY: numbers have no padding, all bits are values, and the array has as many bytes.
        unsafe {
            let bytes = size_of_val(elements.as_slice());
            let to = std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), bytes);
            self.gpu.launcher.download(self.pointer(), to)?;
        }
        Ok(elements)
    }

    /// Checks that the array has `expected` elements.
    ///
    /// # Errors
    /// If it has another number.
    pub(crate) fn check(&self, what: &'static str, expected: usize) -> Result<()> {
        match self.len == expected {
            true => Ok(()),
            false => Err(KernelError::Length {
                what,
                found: self.len,
                expected,
            }),
        }
    }

    /// Checks that the array has `least` elements or more.
    ///
    /// # Errors
    /// If it has fewer.
    pub(crate) fn check_least(&self, what: &'static str, least: usize) -> Result<()> {
        match self.len >= least {
            true => Ok(()),
            false => self.check(what, least),
        }
    }

    /// Address of the first element.
    pub(crate) fn pointer(&self) -> u64 {
        self.allocation.pointer
    }

    /// The array as an argument of a kernel.
    pub(crate) fn argument(&self) -> Argument {
        Argument::Pointer(self.pointer())
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        self.gpu.launcher.free(self.allocation);
    }
}
