//! Backends, which compute a model's operations: kernels on the CPU or on a GPU, or, for tests,
//! compositions of candle's operations.
//!
//! A backend is chosen once, where a model is loaded. Its parameters carry it to the operations
//! that read them, and the decoder asks it where candle's graph is entered.

use candle_core::{Device, Error};
use kernels::device::product::Precision;
use kernels::device::{DeviceMemory, Gpu};
use kernels::host::product::ProductKernel;

use super::place::{cuda, lift};
use crate::config;
#[cfg(feature = "emulate")]
use {
    kernels::device::emulator::{Emulator, Order},
    std::sync::Arc,
};

/// Memory of the emulated GPU, unless `COLLIMATE_EMULATED_BYTES` says otherwise.
#[cfg(feature = "emulate")]
const EMULATED_BYTES: usize = 4 << 30;

/// The implementation that computes a model's operations.
#[derive(Clone, Debug)]
pub enum Backend {
    /// Kernels of this crate on the CPU, and how these compute products.
    Host(ProductKernel),
    /// Kernels on a GPU, and candle's name for it.
    Gpu(Gpu, Device),
    /// Compositions of candle's operations, the oracle of the tests.
    Composed(Device),
}

/// The device cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("run.device = \"{device}\" cannot be used (\"cpu\" can)")]
pub struct DeviceError {
    device: config::Device,
    source: Error,
}

impl Backend {
    /// The CPU, with products that have the same bits on every processor.
    pub const CPU: Self = Self::Host(ProductKernel::Chains);

    /// The emulated GPU, whose memory is the CPU's, with threads in this order.
    #[cfg(feature = "emulate")]
    pub fn emulated(order: Order) -> Self {
        let emulator = Emulator::new(order, emulated_bytes());
        Self::Gpu(Gpu::new(Arc::new(emulator)), Device::Cpu)
    }

    /// Opens a device, and chooses how products are computed where that is the CPU.
    ///
    /// # Errors
    /// A GPU that does not exist, or a binary that was built without CUDA.
    pub fn open(
        device: config::Device,
        arithmetic: config::Arithmetic,
    ) -> Result<Self, DeviceError> {
        match device {
            config::Device::Cpu => Ok(Self::Host(kernel(arithmetic))),
            config::Device::Cuda(ordinal) => {
                let opened = cuda::open(ordinal);
                let (gpu, opened) = opened.map_err(|source| DeviceError { device, source })?;
                Ok(Self::Gpu(gpu, opened))
            }
            #[cfg(feature = "emulate")]
            config::Device::Emulated => Ok(Self::emulated(Order::Forward)),
        }
    }

    /// The device that holds the tensors.
    pub fn device(&self) -> &Device {
        match self {
            Self::Host(_) => &Device::Cpu,
            Self::Gpu(_, device) | Self::Composed(device) => device,
        }
    }

    /// Whether kernels of this crate run the operations.
    pub fn has_kernels(&self) -> bool {
        !matches!(self, Self::Composed(_))
    }

    /// The GPU.
    ///
    /// # Errors
    /// If the backend is another one.
    pub fn gpu(&self) -> Result<&Gpu, Error> {
        match self {
            Self::Gpu(gpu, _) => Ok(gpu),
            Self::Host(_) | Self::Composed(_) => candle_core::bail!("{self:?} is not a GPU"),
        }
    }

    /// Memory of the GPU; `None` for another backend.
    ///
    /// # Errors
    /// If the device fails.
    pub fn memory(&self) -> Result<Option<DeviceMemory>, Error> {
        match self {
            Self::Gpu(gpu, _) => lift(gpu.memory()).map(Some),
            Self::Host(_) | Self::Composed(_) => Ok(None),
        }
    }

    /// Precision of products on a GPU.
    pub fn precision(&self) -> Precision {
        Precision::Full
    }

    /// Whether decoding gives the bits of the training forward pass.
    pub fn decodes_exactly(&self) -> bool {
        matches!(self, Self::Host(_))
    }

    /// How products of our kernels are computed.
    pub fn products(&self) -> ProductKernel {
        match self {
            Self::Host(kernel) => *kernel,
            Self::Gpu(..) | Self::Composed(_) => ProductKernel::Chains,
        }
    }

    /// Whether both backends compute the same bits on the same device, so that models on them can
    /// share parameters.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host(own), Self::Host(others)) => own == others,
            (Self::Gpu(own, _), Self::Gpu(others, _)) => own.is_same(others),
            (Self::Composed(own), Self::Composed(others)) => own.same_device(others),
            _ => false,
        }
    }
}

/// Bytes of a GPU's memory; `None` if the device is none or cannot be found.
pub fn device_bytes(device: config::Device) -> Option<u64> {
    match device {
        config::Device::Cpu => None,
        config::Device::Cuda(ordinal) => cuda::total_bytes(ordinal),
        #[cfg(feature = "emulate")]
        config::Device::Emulated => Some(emulated_bytes() as u64),
    }
}

/// Memory of the emulated GPU.
#[cfg(feature = "emulate")]
fn emulated_bytes() -> usize {
    let bytes = std::env::var("COLLIMATE_EMULATED_BYTES");
    bytes.map_or(EMULATED_BYTES, |bytes| {
        bytes.parse().expect("a number of bytes")
    })
}

/// The kernel that a setting selects on this processor.
pub fn kernel(setting: config::Arithmetic) -> ProductKernel {
    match setting {
        config::Arithmetic::Fast => ProductKernel::fastest(),
        config::Arithmetic::Portable => ProductKernel::Chains,
    }
}
