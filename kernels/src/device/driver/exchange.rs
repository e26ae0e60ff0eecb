//! Exchange of memory with cudarc, and so with candle, whose CUDA tensors hold cudarc's slices. No
//! function here copies.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};

use super::Driver;
use crate::device::array::{Array, Gpu, Number, Slice, SliceMut};
use crate::device::error::{KernelError, Result};

/// A driver's device, with the memory that is shared with other users of its stream.
#[derive(Clone)]
pub struct Exchange {
    gpu: Gpu,
    stream: Arc<CudaStream>,
}

/// Element types of cudarc's slices.
pub trait CudaNumber: Copy + 'static {
    /// The same bits as an element of an array.
    type Number: Number;
}

impl CudaNumber for f32 {
    type Number = f32;
}

impl CudaNumber for f64 {
    type Number = f64;
}

impl CudaNumber for u32 {
    type Number = u32;
}

impl CudaNumber for half::bf16 {
    type Number = u16;
}

impl Exchange {
    /// The device of a driver.
    pub fn new(driver: Driver) -> Self {
        Self {
            stream: Arc::clone(driver.stream()),
            gpu: Gpu::new(Arc::new(driver)),
        }
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// A slice as an array, which frees the memory when it is dropped.
    ///
    /// # Errors
    /// If the slice is of another stream.
    pub fn array<T: CudaNumber>(&self, slice: CudaSlice<T>) -> Result<Array<T::Number>> {
        self.check(slice.stream())?;
        let len = slice.len();
        // SAFETY: the memory comes from the stream's pool, and `leak` gives it up. A number and its
        // type in arrays have the same bits.
        Ok(unsafe { Array::from_raw(&self.gpu, slice.leak(), len) })
    }

    /// An array as a slice, which frees the memory when it is dropped.
    ///
    /// # Errors
    /// If the array is of another device.
    pub fn slice<T: CudaNumber>(&self, array: Array<T::Number>) -> Result<CudaSlice<T>> {
        if !array.gpu().is_same(&self.gpu) {
            return Err(KernelError::Devices { what: "a tensor" });
        }
        let (pointer, len) = array.into_raw();
        // SAFETY: the array has given up its memory, which comes from the stream's pool and holds
        // `len` elements.
        Ok(unsafe { self.stream.upgrade_device_ptr(pointer, len) })
    }

    /// The elements of a slice, for reading.
    ///
    /// # Errors
    /// If the slice is of another stream.
    pub fn borrow<'a, T: CudaNumber>(
        &'a self,
        slice: &'a CudaSlice<T>,
    ) -> Result<Slice<'a, T::Number>> {
        self.check(slice.stream())?;
        let (pointer, _ordered) = slice.device_ptr(&self.stream);
        // SAFETY: the slice holds the elements, is borrowed as long as the result, and work on it
        // is ordered by the stream.
        Ok(unsafe { Slice::from_raw(&self.gpu, pointer, slice.len()) })
    }

    /// The elements of a slice, for changes.
    ///
    /// # Errors
    /// If the slice is of another stream.
    pub fn borrow_mut<'a, T: CudaNumber>(
        &'a self,
        slice: &'a mut CudaSlice<T>,
    ) -> Result<SliceMut<'a, T::Number>> {
        self.check(slice.stream())?;
        let len = slice.len();
        let (pointer, _ordered) = slice.device_ptr_mut(&self.stream);
        // SAFETY: as in `borrow`, and nothing else accesses the slice while it is borrowed.
        Ok(unsafe { SliceMut::from_raw(&self.gpu, pointer, len) })
    }

    fn check(&self, stream: &Arc<CudaStream>) -> Result<()> {
        match stream.cu_stream() == self.stream.cu_stream()
            && stream.context() == self.stream.context()
        {
            true => Ok(()),
            false => Err(KernelError::Devices { what: "a tensor" }),
        }
    }
}
