//! A GPU: rows are arrays in its memory. candle's tensors are read and written where they lie.
#![allow(unsafe_code)] // The memory of candle's tensors is lent to kernels.

use std::cell::Cell;
use std::ops::{Deref, Range};

use candle_core::{
    CpuStorage, CudaStorage, Device, InplaceOp1, Layout, Result, Storage, Tensor, bail,
};
use kernels::device::product::Receive;
use kernels::device::rows::{self, RowIndices};
use kernels::device::{Array, Gpu, Slice, SliceMut};
use kernels::host::product::Write;

use super::{Place, cuda, lift};
use crate::ops::backend::Backend;
use crate::ops::storage::Reading;

impl Place for Gpu {
    type Rows = Array<f32>;
    type View<'a> = Slice<'a, f32>;
    type ViewMut<'a> = SliceMut<'a, f32>;

    fn view(rows: &Array<f32>) -> Slice<'_, f32> {
        rows.slice()
    }

    fn shorter<'s, 'l: 's>(x: Self::View<'l>) -> Self::View<'s> {
        x
    }

    fn view_mut(rows: &mut Array<f32>) -> SliceMut<'_, f32> {
        rows.slice_mut()
    }

    fn len(x: Slice<'_, f32>) -> usize {
        x.len()
    }

    fn part<'a>(x: Self::View<'a>, range: Range<usize>) -> Self::View<'a> {
        x.part(range)
    }

    fn zeros(x: Slice<'_, f32>, len: usize) -> Result<Array<f32>> {
        lift(x.gpu().zeros(len))
    }

    fn split<'a>(x: Self::ViewMut<'a>, at: usize) -> (Self::ViewMut<'a>, Self::ViewMut<'a>) {
        x.split_at(at)
    }

    fn copied(x: Slice<'_, f32>) -> Result<Array<f32>> {
        lift(x.copied())
    }

    fn add(to: SliceMut<'_, f32>, from: Slice<'_, f32>) -> Result<()> {
        lift(rows::add(to, from))
    }

    fn gather(x: Slice<'_, f32>, width: usize, rows: &[u32]) -> Result<Array<f32>> {
        let ids = lift(RowIndices::new(x.gpu(), rows, x.len() / width.max(1)))?;
        lift(rows::gather(x, &ids))
    }

    fn scatter(x: Slice<'_, f32>, rows: &[u32], count: usize, write: Write) -> Result<Array<f32>> {
        let width = x.len() / rows.len().max(1);
        let mut all = lift(x.gpu().zeros(count * width))?;
        let ids = lift(RowIndices::new(x.gpu(), rows, count))?;
        let receive = match write {
            Write::Set => Receive::Set,
            Write::Add => Receive::Add,
        };
        lift(rows::scatter(all.slice_mut(), x, &ids, receive))?;
        Ok(all)
    }

    fn scatter_add(
        to: SliceMut<'_, f32>,
        x: Slice<'_, f32>,
        width: usize,
        rows: &[u32],
    ) -> Result<()> {
        let ids = lift(RowIndices::new(x.gpu(), rows, to.len() / width.max(1)))?;
        lift(rows::scatter(to, x, &ids, Receive::Add))
    }

    fn of<'a, G: Deref<Target = Storage>>(
        reading: &'a Reading<G>,
        backend: &'a Backend,
    ) -> Result<Slice<'a, f32>> {
        let range = reading.range();
        let start = match reading.storage() {
            Storage::Cpu(CpuStorage::F32(elements)) => elements.as_ptr() as u64,
            Storage::Cuda(storage) => cuda::pointer(storage)?,
            _ => bail!("a tensor of the GPU is needed"),
        };
        let pointer = start + (range.start * size_of::<f32>()) as u64;
        // SAFETY: the tensor holds the range, and stays locked for reading as long as the slice
        // lives. Kernels run in the order of the launches, as candle's do.
        Ok(unsafe { Slice::from_raw(backend.gpu()?, pointer, range.len()) })
    }

    fn update(
        tensor: &Tensor,
        backend: &Backend,
        f: impl FnOnce(SliceMut<'_, f32>) -> Result<()>,
    ) -> Result<()> {
        let update = Update {
            gpu: backend.gpu()?,
            f: Cell::new(Some(f)),
        };
        tensor.inplace_op1(&update)
    }

    fn storage(rows: Array<f32>, device: &Device) -> Result<Storage> {
        match device {
            Device::Cpu => Ok(Storage::Cpu(CpuStorage::F32(lift(rows.download())?))),
            Device::Cuda(device) => cuda::storage(rows, device),
            Device::Metal(_) => bail!("rows of the GPU are not on this device"),
        }
    }
}

/// An in-place operation that calls its function once.
struct Update<'g, F> {
    gpu: &'g Gpu,
    f: Cell<Option<F>>,
}

impl<F: FnOnce(SliceMut<'_, f32>) -> Result<()>> Update<'_, F> {
    fn call(&self, start: u64, layout: &Layout) -> Result<()> {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("a contiguous tensor is needed, found {layout:?}")
        };
        let pointer = start + (from * size_of::<f32>()) as u64;
        // SAFETY: the tensor holds the range, and is locked for writing while `f` runs.
        let elements = unsafe { SliceMut::from_raw(self.gpu, pointer, to - from) };
        match self.f.take() {
            Some(f) => f(elements),
            None => Ok(()),
        }
    }
}

impl<F: FnOnce(SliceMut<'_, f32>) -> Result<()>> InplaceOp1 for Update<'_, F> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match storage {
            CpuStorage::F32(elements) => self.call(elements.as_mut_ptr() as u64, layout),
            _ => bail!("an f32 tensor is needed"),
        }
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.call(cuda::pointer(storage)?, layout)
    }
}
