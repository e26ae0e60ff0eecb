//! From the device that the user named to the one that candle computes on.

use candle_core::Device;

use crate::config;

/// The device cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "device \"{device}\" cannot be used; it needs a build with --features cuda and a GPU of that number (see nvidia-smi)"
)]
pub struct DeviceError {
    device: config::Device,
    source: candle_core::Error,
}

/// Opens the device.
///
/// # Errors
/// A GPU that is not there, or a binary that was built without CUDA.
pub fn open(device: config::Device) -> Result<Device, DeviceError> {
    match device {
        config::Device::Cpu => Ok(Device::Cpu),
        config::Device::Cuda(ordinal) => {
            Device::new_cuda(ordinal).map_err(|source| DeviceError { device, source })
        }
    }
}
