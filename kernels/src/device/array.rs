//! Arrays in device memory, and borrowed parts of them.

use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::Range;
use std::sync::Arc;

use crate::device::error::{KernelError, Result};
use crate::device::launcher::{Allocation, DeviceMemory, Launcher};

/// A device. Clones share it.
#[derive(Clone)]
pub struct Gpu {
    pub(crate) launcher: Arc<dyn Launcher>,
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

/// Elements of an array, or of other memory of the device, that kernels read.
pub struct Slice<'a, T> {
    gpu: &'a Gpu,
    pointer: u64,
    len: usize,
    number: PhantomData<&'a [T]>,
}

/// Elements of an array, or of other memory of the device, that kernels read and change.
pub struct SliceMut<'a, T> {
    gpu: &'a Gpu,
    pointer: u64,
    len: usize,
    number: PhantomData<&'a mut [T]>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").finish_non_exhaustive()
    }
}

impl Gpu {
    /// The device behind a launcher.
    pub fn new(launcher: Arc<dyn Launcher>) -> Self {
        Self { launcher }
    }

    /// Whether two handles stand for one device.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.launcher, &other.launcher)
    }

    /// The memory in use; see [`Launcher::memory`].
    ///
    /// # Errors
    /// Errors of the device.
    pub fn memory(&self) -> Result<DeviceMemory> {
        self.launcher.memory()
    }

    /// Begins the peak of the memory in use anew.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn restart_peak(&self) -> Result<()> {
        self.launcher.restart_peak()
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// Errors of the kernels before.
    pub fn synchronize(&self) -> Result<()> {
        self.launcher.synchronize()
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

    /// An array of zeros.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn zeros<T: Number>(&self, len: usize) -> Result<Array<T>> {
        let mut array = self.array(len)?;
        array.slice_mut().clear()?;
        Ok(array)
    }

    /// An array with these elements.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn upload<T: Number>(&self, from: &[T]) -> Result<Array<T>> {
        let mut array = self.array(from.len())?;
        array.slice_mut().upload(from)?;
        Ok(array)
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

    /// All elements, for reading.
    pub fn slice(&self) -> Slice<'_, T> {
        Slice {
            gpu: &self.gpu,
            pointer: self.allocation.pointer,
            len: self.len,
            number: PhantomData,
        }
    }

    /// All elements, for changes.
    pub fn slice_mut(&mut self) -> SliceMut<'_, T> {
        SliceMut {
            gpu: &self.gpu,
            pointer: self.allocation.pointer,
            len: self.len,
            number: PhantomData,
        }
    }

    /// The elements, on the host.
    ///
    /// # Errors
    /// Errors of the device, and of the kernels before.
    pub fn download(&self) -> Result<Vec<T>> {
        self.slice().download()
    }
}

impl<T> Array<T> {
    /// An array of memory that it frees.
    ///
    /// # Safety
    /// The memory must be as the device's launcher allocates it, hold `len` elements and have no
    /// other owner.
    #[cfg(feature = "cuda")]
    pub(crate) unsafe fn from_raw(gpu: &Gpu, pointer: u64, len: usize) -> Self {
        let bytes = len * size_of::<T>();
        Self {
            gpu: gpu.clone(),
            allocation: Allocation { pointer, bytes },
            len,
            number: PhantomData,
        }
    }

    /// Address and length of the memory, which the caller has to free.
    #[cfg(feature = "cuda")]
    pub(crate) fn into_raw(self) -> (u64, usize) {
        let array = std::mem::ManuallyDrop::new(self);
        // SAFETY: the array, which is not dropped, is not used again.
        drop(unsafe { std::ptr::read(&raw const array.gpu) });
        (array.allocation.pointer, array.len)
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        self.gpu.launcher.free(self.allocation);
    }
}

impl<T> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<'_, T> {}

impl<'a, T: Number> Slice<'a, T> {
    /// The `len` elements at a device address.
    ///
    /// # Safety
    /// The address must be one of this device, hold as many elements, and stay valid and unchanged
    /// while the slice lives.
    pub unsafe fn from_raw(gpu: &'a Gpu, pointer: u64, len: usize) -> Self {
        Self {
            gpu,
            pointer,
            len,
            number: PhantomData,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device that holds the elements.
    pub fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// Address of the first element.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// A part of the elements.
    ///
    /// # Panics
    /// If there is no such part: a bug of the caller.
    pub fn part(self, range: Range<usize>) -> Self {
        let (offset, len) = bounds(&range, self.len);
        Self {
            pointer: self.pointer + (offset * size_of::<T>()) as u64,
            len,
            ..self
        }
    }

    /// The elements, on the host.
    ///
    /// # Errors
    /// Errors of the device, and of the kernels before.
    pub fn download(self) -> Result<Vec<T>> {
        let mut elements = vec![T::default(); self.len];
        // SAFETY: numbers have no padding, all bits are values, and the slice has as many bytes.
        unsafe {
            let bytes = size_of_val(elements.as_slice());
            let to = std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), bytes);
            self.gpu.launcher.download(self.pointer, to)?;
        }
        Ok(elements)
    }

    /// A copy of the elements.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn copied(self) -> Result<Array<T>> {
        let mut array = self.gpu.array(self.len)?;
        array.slice_mut().copy_from(self)?;
        Ok(array)
    }

    /// Checks that there are `expected` elements.
    ///
    /// # Errors
    /// If there is another number.
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

    /// Checks that there are `least` elements or more.
    ///
    /// # Errors
    /// If there are fewer.
    pub(crate) fn check_least(&self, what: &'static str, least: usize) -> Result<()> {
        match self.len >= least {
            true => Ok(()),
            false => self.check(what, least),
        }
    }
}

impl<'a, T: Number> SliceMut<'a, T> {
    /// The `len` elements at a device address.
    ///
    /// # Safety
    /// The address must be one of this device and hold as many elements, and nothing else may
    /// access them while the slice lives.
    pub unsafe fn from_raw(gpu: &'a Gpu, pointer: u64, len: usize) -> Self {
        Self {
            gpu,
            pointer,
            len,
            number: PhantomData,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device that holds the elements.
    pub fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// The elements, for reading.
    pub fn as_slice(&self) -> Slice<'_, T> {
        Slice {
            gpu: self.gpu,
            pointer: self.pointer,
            len: self.len,
            number: PhantomData,
        }
    }

    /// Address of the first element.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// The elements, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> SliceMut<'_, T> {
        SliceMut {
            gpu: self.gpu,
            pointer: self.pointer,
            len: self.len,
            number: PhantomData,
        }
    }

    /// A part of the elements.
    ///
    /// # Panics
    /// If there is no such part: a bug of the caller.
    pub fn part(self, range: Range<usize>) -> Self {
        let (offset, len) = bounds(&range, self.len);
        Self {
            pointer: self.pointer + (offset * size_of::<T>()) as u64,
            len,
            ..self
        }
    }

    /// The elements before the one at `at`, and the others.
    ///
    /// # Panics
    /// If `at` is behind the end: a bug of the caller.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let (gpu, pointer, len) = (self.gpu, self.pointer, self.len);
        let part = |range: Range<usize>| {
            Self {
                gpu,
                pointer,
                len,
                number: PhantomData,
            }
            .part(range)
        };
        (part(0..at), part(at..len))
    }

    /// Sets all elements to zero.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn clear(&mut self) -> Result<()> {
        // SAFETY: the slice has as many bytes, and zero bits are the number zero.
        unsafe { self.gpu.launcher.clear(self.pointer, self.bytes()) }
    }

    /// Copies elements from the host.
    ///
    /// # Errors
    /// If the lengths differ, and errors of the device.
    pub fn upload(&mut self, from: &[T]) -> Result<()> {
        self.as_slice().check("the uploaded elements", from.len())?;
        // SAFETY: numbers have no padding, and the slice has as many bytes.
        unsafe {
            let bytes = std::slice::from_raw_parts(from.as_ptr().cast(), size_of_val(from));
            self.gpu.launcher.upload(self.pointer, bytes)
        }
    }

    /// Copies elements of the same device.
    ///
    /// # Errors
    /// If the lengths or the devices differ, and errors of the device.
    pub fn copy_from(&mut self, from: Slice<T>) -> Result<()> {
        from.check("the copied elements", self.len)?;
        if !from.gpu.is_same(self.gpu) {
            return Err(KernelError::Devices { what: "a copy" });
        }
        let launcher = &self.gpu.launcher;
        // SAFETY: both have as many bytes, and a slice that can be changed overlaps no other.
        unsafe { launcher.copy(from.pointer, self.pointer, self.bytes()) }
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

/// Offset and length of a range within `len` elements.
fn bounds(range: &Range<usize>, len: usize) -> (usize, usize) {
    assert!(
        range.start <= range.end && range.end <= len,
        "part {range:?} of {len} elements"
    );
    (range.start, range.len())
}
