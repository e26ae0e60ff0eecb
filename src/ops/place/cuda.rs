//! NVIDIA GPUs, and the memory of candle's CUDA tensors.
#![allow(unsafe_code)] // The order of work is the stream's, and no longer kept by events.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::DevicePtr;
use candle_core::{CudaDevice, CudaStorage, Device, Result, Storage};
use kernels::device::driver::{Driver, exchange};
use kernels::device::{Array, Gpu};

use super::lift;

/// Opens a GPU, and compiles its kernels unless they are known from an earlier run.
pub(crate) fn open(ordinal: usize) -> Result<(Gpu, Device)> {
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: all work is on one stream, which orders it.
    unsafe { device.disable_event_tracking() };
    let driver = lift(Driver::new(device.cuda_stream(), images().as_deref()))?;
    lift(driver.load_all())?;
    Ok((Gpu::new(Arc::new(driver)), Device::Cuda(device)))
}

/// The folder of compiled kernels: `collimate/kernels` in the user's cache folder.
fn images() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(env::home_dir()?.join(".cache")))?;
    Some(cache.join("collimate").join("kernels"))
}

/// Device address of the first element of an `f32` storage.
pub(super) fn pointer(storage: &CudaStorage) -> Result<u64> {
    let stream = storage.device().cuda_stream();
    let (pointer, _ordered) = storage.as_cuda_slice::<f32>()?.device_ptr(&stream);
    Ok(pointer)
}

/// An array as the storage of a tensor, without a copy.
pub(super) fn storage(rows: Array<f32>, device: &CudaDevice) -> Result<Storage> {
    let slice = lift(exchange::slice::<f32>(rows, &device.cuda_stream()))?;
    Ok(Storage::Cuda(CudaStorage::wrap_cuda_slice(
        slice,
        device.clone(),
    )))
}
