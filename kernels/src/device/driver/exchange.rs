//! Exchange of memory with cudarc, and so with candle, whose CUDA tensors hold cudarc's slices. No
//! function here copies.

use std::any::Any;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};

use super::Driver;
use crate::device::array::{Array, Gpu, Number, Slice, SliceMut};
use crate::device::error::{KernelError, Result};

/// Element types of cudarc's slices.
pub trait CudaNumber: Copy + 'static {
    /// Element type of the array that holds the same bits.
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

/// A slice as an array of `gpu`, which frees the memory when it is dropped.
///
/// # Errors
/// If the slice is not of the stream of `gpu`.
pub fn array<T: CudaNumber>(gpu: &Gpu, slice: CudaSlice<T>) -> Result<Array<T::Number>> {
    stream_of(gpu, slice.stream())?;
    let len = slice.len();
    // SAFETY: the memory comes from the stream's pool, and `leak` gives it up. A number and its
    // type in arrays have the same bits.
    Ok(unsafe { Array::from_raw(gpu, slice.leak(), len) })
}

/// An array as a slice of `stream`, which frees the memory when it is dropped.
///
/// # Errors
/// If the array is not of this stream.
pub fn slice<T: CudaNumber>(
    array: Array<T::Number>,
    stream: &Arc<CudaStream>,
) -> Result<CudaSlice<T>> {
    let own = Arc::clone(stream_of(array.gpu(), stream)?);
    let (pointer, len) = array.into_raw();
    // SAFETY: the array has given up its memory, which comes from the stream's pool and holds `len`
    // elements.
    Ok(unsafe { own.upgrade_device_ptr(pointer, len) })
}

/// The elements of a slice, for reading.
///
/// # Errors
/// If the slice is not of the stream of `gpu`.
pub fn borrow<'a, T: CudaNumber>(
    gpu: &'a Gpu,
    slice: &'a CudaSlice<T>,
) -> Result<Slice<'a, T::Number>> {
    let stream = stream_of(gpu, slice.stream())?;
    let (pointer, _ordered) = slice.device_ptr(stream);
    // SAFETY: the slice holds the elements and is borrowed as long as the result, and work on it is
    // ordered by the stream.
    Ok(unsafe { Slice::from_raw(gpu, pointer, slice.len()) })
}

/// The elements of a slice, for changes.
///
/// # Errors
/// If the slice is not of the stream of `gpu`.
pub fn borrow_mut<'a, T: CudaNumber>(
    gpu: &'a Gpu,
    slice: &'a mut CudaSlice<T>,
) -> Result<SliceMut<'a, T::Number>> {
    let stream = stream_of(gpu, slice.stream())?;
    let len = slice.len();
    let (pointer, _ordered) = slice.device_ptr_mut(stream);
    // SAFETY: as in `borrow`, and nothing else accesses the slice while it is borrowed.
    Ok(unsafe { SliceMut::from_raw(gpu, pointer, len) })
}

/// The stream of a device, which must be this one.
fn stream_of<'a>(gpu: &'a Gpu, other: &CudaStream) -> Result<&'a Arc<CudaStream>> {
    let launcher: &dyn Any = &*gpu.launcher;
    let stream = launcher.downcast_ref().map(Driver::stream);
    let is_same = |own: &&Arc<CudaStream>| {
        own.cu_stream() == other.cu_stream() && own.context().cu_ctx() == other.context().cu_ctx()
    };
    let same = stream.filter(is_same);
    same.ok_or(KernelError::Devices { what: "a tensor" })
}
