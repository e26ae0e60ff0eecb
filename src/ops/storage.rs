//! The two doors between candle tensors and plain slices on the CPU: read a tensor, change a tensor in place.
//!
//! Everything here is for contiguous `f32` tensors; other devices go through candle's own operations.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};

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

/// Hands the elements of a contiguous `f32` CPU tensor to `f`.
///
/// # Errors
/// If the tensor is on another device, of another type, or not contiguous.
pub fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(f(slice(cpu, layout)?)),
        _ => bail!("a CPU tensor is needed, found {:?}", tensor.device()),
    }
}

/// Lets `f` change the elements of a contiguous `f32` CPU tensor in place; views see the change.
///
/// # Errors
/// If the tensor is on another device, of another type, or not contiguous.
pub fn update(tensor: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<()> {
    tensor.inplace_op1(&Update(Cell::new(Some(f))))
}

/// Runs its function once.
struct Update<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for Update<F> {
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
