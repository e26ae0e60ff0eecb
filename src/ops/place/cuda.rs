//! NVIDIA GPUs, and the memory of candle's CUDA tensors.
#![allow(unsafe_code)] // The order of work is the stream's, and no longer kept by events.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, result};
use candle_core::{CudaDevice, CudaStorage, Device, Result, Storage, bail};
use kernels::device::driver::{Driver, exchange};
use kernels::device::{Array, Gpu};

use super::lift;

/// Opens a GPU, and compiles its kernels unless they are known from an earlier run.
///
/// # Errors
/// If there is no driver, no such GPU, or one that cannot run the kernels.
pub(crate) fn open(ordinal: usize) -> Result<(Gpu, Device)> {
    let count = count()?;
    if ordinal >= count {
        bail!("{count} GPUs are visible here, numbered from 0 (see nvidia-smi -L)");
    }
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: all work is on one stream, which orders it.
    unsafe { device.disable_event_tracking() };
    let driver = lift(Driver::new(device.cuda_stream(), images().as_deref()))?;
    lift(driver.load_all())?;
    Ok((Gpu::new(Arc::new(driver)), Device::Cuda(device)))
}

/// The number of GPUs that this process may use.
fn count() -> Result<usize> {
    // cudarc panics where the driver's library is missing.
    let counted = std::panic::catch_unwind(|| {
        result::init()?;
        result::device::get_count()
    });
    match counted {
        Ok(Ok(count)) => Ok(usize::try_from(count).unwrap_or(0)),
        Ok(Err(error)) => bail!("NVIDIA's driver does not start: {error} (see nvidia-smi)"),
        Err(_) => bail!("NVIDIA's driver (libcuda.so) is not installed here"),
    }
}

/// Bytes of a GPU's memory; `None` if there is no such GPU.
pub(crate) fn total_bytes(ordinal: usize) -> Option<u64> {
    if ordinal >= count().ok()? {
        return None;
    }
    let device = result::device::get(i32::try_from(ordinal).ok()?).ok()?;
    // SAFETY: the device exists.
    let bytes = unsafe { result::device::total_mem(device) };
    bytes.ok().map(|bytes| bytes as u64)
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
