//! The functions of `cuda.rs` in a build without the feature `cuda`.

use candle_core::{CudaDevice, CudaStorage, Device, Result, Storage, bail};
use kernels::device::{Array, Gpu};

const MESSAGE: &str = "this binary was built without CUDA; build it with \
                       cargo build --release --features cuda";

pub(crate) fn open(_: usize) -> Result<(Gpu, Device)> {
    bail!("{MESSAGE}")
}

pub(crate) fn total_bytes(_: usize) -> Option<u64> {
    None
}

pub(super) fn pointer(_: &CudaStorage) -> Result<u64> {
    bail!("{MESSAGE}")
}

pub(super) fn storage(_: Array<f32>, _: &CudaDevice) -> Result<Storage> {
    bail!("{MESSAGE}")
}
