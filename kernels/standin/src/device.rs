//! The one device.

use std::collections::BTreeMap;
use std::env::var;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use kernels::device::emulator::{Emulator, Order};
use kernels::device::{Allocation, KernelError, Launcher};

/// Bytes of memory, unless `STANDIN_MEMORY` says otherwise.
const MEMORY: usize = 8 << 30;

/// The device of the process.
pub static DEVICE: LazyLock<EmulatedDevice> = LazyLock::new(EmulatedDevice::new);

/// Errors of the driver, with their numbers in `cuda.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum DriverStatus {
    InvalidValue = 1,
    OutOfMemory = 2,
    InvalidImage = 200,
    NotFound = 500,
    LaunchFailed = 719,
    NotSupported = 801,
}

impl From<DriverStatus> for i32 {
    fn from(status: DriverStatus) -> Self {
        status as Self
    }
}

/// An emulated device and its allocations.
pub struct EmulatedDevice {
    pub emulator: Emulator,
    pub bytes: usize,
    /// Size of each allocation, by its address.
    allocations: Mutex<BTreeMap<u64, usize>>,
}

impl EmulatedDevice {
    fn new() -> Self {
        let order = match var("STANDIN_ORDER").as_deref() {
            Err(_) | Ok("forward") => Order::Forward,
            Ok("reverse") => Order::Reverse,
            Ok(seed) => Order::Seeded(seed.parse().expect("STANDIN_ORDER is a number")),
        };
        let bytes = var("STANDIN_MEMORY").map_or(MEMORY, |bytes| {
            bytes.parse().expect("STANDIN_MEMORY is a number of bytes")
        });
        Self {
            emulator: Emulator::new(order, bytes),
            bytes,
            allocations: Mutex::default(),
        }
    }

    fn allocations(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.allocations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn allocate(&self, bytes: usize) -> Result<u64, DriverStatus> {
        if bytes == 0 {
            return Err(DriverStatus::InvalidValue);
        }
        let allocation = self.emulator.allocate(bytes).map_err(status_of)?;
        self.allocations().insert(allocation.pointer, bytes);
        Ok(allocation.pointer)
    }

    pub fn free(&self, pointer: u64) -> Result<(), DriverStatus> {
        let bytes = self.allocations().remove(&pointer);
        let bytes = bytes.ok_or(DriverStatus::InvalidValue)?;
        self.emulator.free(Allocation { pointer, bytes });
        Ok(())
    }

    /// Checks that these bytes lie within an allocation.
    pub fn check(&self, pointer: u64, bytes: usize) -> Result<(), DriverStatus> {
        let allocations = self.allocations();
        let (start, size) = allocations
            .range(..=pointer)
            .next_back()
            .ok_or(DriverStatus::InvalidValue)?;
        match pointer - start + bytes as u64 <= *size as u64 {
            true => Ok(()),
            false => Err(DriverStatus::InvalidValue),
        }
    }
}

/// The driver's error for one of the emulator, which is printed.
pub fn status_of(error: KernelError) -> DriverStatus {
    match error {
        KernelError::OutOfMemory { .. } => DriverStatus::OutOfMemory,
        KernelError::Launch { .. } => {
            crate::say(format_args!("{error}"));
            DriverStatus::InvalidValue
        }
        error => {
            crate::say(format_args!("{error}"));
            DriverStatus::LaunchFailed
        }
    }
}
