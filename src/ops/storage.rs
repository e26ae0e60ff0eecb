//! Access to the elements of contiguous `f32` tensors: locked for reading on any device, and on the
//! CPU as plain slices, to read them or to change them in place.

use std::cell::Cell;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Storage, Tensor, bail};

/// The elements of a contiguous `f32` CPU storage.
///
/// # Errors
/// If the storage holds another type or the layout has gaps.
pub fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a contiguous tensor is needed, found {layout:?}"),
    }
}

/// A contiguous `f32` tensor that is locked for reading; `G` is candle's guard.
pub struct Reading<G> {
    storage: G,
    range: Range<usize>,
}

impl<G: Deref<Target = Storage>> Reading<G> {
    /// The storage that holds the elements, in which they are [`Self::range`].
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The elements' range within the storage.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The elements of a tensor that [`open`] locked.
    pub fn slice(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.range.clone()],
            _ => unreachable!("the device was checked when the tensor was opened"),
        }
    }
}

/// Locks a tensor of the CPU for reading.
///
/// # Errors
/// If it is on another device, of another type, or not contiguous.
pub fn open(tensor: &Tensor) -> Result<Reading<impl Deref<Target = Storage>>> {
    let reading = lock(tensor)?;
    match reading.storage() {
        Storage::Cpu(_) => Ok(reading),
        _ => bail!(
            "a tensor on the CPU is needed, found one on {:?}",
            tensor.device()
        ),
    }
}

/// Locks a tensor of any device for reading.
///
/// # Errors
/// If it is of another type than `f32`, or not contiguous.
pub fn lock(tensor: &Tensor) -> Result<Reading<impl Deref<Target = Storage>>> {
    if tensor.dtype() != DType::F32 {
        bail!("an f32 tensor is needed, found {:?}", tensor.dtype())
    }
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a contiguous tensor is needed, found {layout:?}")
    };
    Ok(Reading {
        storage,
        range: start..end,
    })
}

/// Number of rows of a tensor whose last axis is a row.
pub fn rows(dims: &[usize]) -> usize {
    dims.iter().rev().skip(1).product()
}

/// Calls `f` with the elements of a contiguous `f32` CPU tensor.
///
/// # Errors
/// As [`open`].
pub fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    Ok(f(open(tensor)?.slice()))
}

/// Calls `f` to change the elements of a contiguous `f32` CPU tensor in place; views see the
/// change.
///
/// # Errors
/// If the tensor is on another device, of another type, or not contiguous.
pub fn update(tensor: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<()> {
    tensor.inplace_op1(&UpdateOnce(Cell::new(Some(f))))
}

/// An in-place operation that calls its function once.
struct UpdateOnce<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for UpdateOnce<F> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("a contiguous tensor is needed, found {layout:?}")
        };
        let CpuStorage::F32(data) = storage else {
            bail!("an f32 tensor is needed")
        };
        if let Some(f) = self.0.take() {
            f(&mut data[start..end]);
        }
        Ok(())
    }
}
