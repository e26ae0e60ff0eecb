//! libcuda: memory.

use std::ffi::{c_int, c_uchar, c_void};

use kernels::device::Launcher;

use crate::device::{DEVICE, DriverStatus, status_of};
use crate::status;

/// Attributes of a pool, `CUmemPool_attribute` in `cuda.h`.
const RESERVED_MEM_CURRENT: c_int = 5;
const USED_MEM_CURRENT: c_int = 7;
const USED_MEM_HIGH: c_int = 8;

/// The pool, whose address no one follows.
const POOL: *mut c_void = std::ptr::without_provenance_mut(2);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(
    pointer: *mut u64,
    bytes: usize,
    _stream: *mut c_void,
) -> c_int {
    // SAFETY: the caller passes the address of a number.
    unsafe { cuMemAlloc_v2(pointer, bytes) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(pointer: *mut u64, bytes: usize) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        let allocated = DEVICE.allocate(bytes)?;
        // SAFETY: the caller passes the address of a number.
        unsafe { *pointer = allocated };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(pointer: u64, _stream: *mut c_void) -> c_int {
    cuMemFree_v2(pointer)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(pointer: u64) -> c_int {
    status(|| DEVICE.free(pointer))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        let memory = DEVICE.emulator.memory().map_err(status_of)?;
        // SAFETY: the caller passes the addresses of two numbers.
        unsafe { (*free, *total) = (memory.free, memory.total) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetMemPool(pool: *mut *mut c_void, _device: c_int) -> c_int {
    // SAFETY: the caller passes the address of a handle.
    unsafe { *pool = POOL };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolSetAttribute(
    _pool: *mut c_void,
    attribute: c_int,
    _value: *mut c_void,
) -> c_int {
    status(|| match attribute {
        USED_MEM_HIGH => DEVICE.emulator.restart_peak().map_err(status_of),
        _ => Ok(()),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolGetAttribute(
    _pool: *mut c_void,
    attribute: c_int,
    value: *mut c_void,
) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        let memory = DEVICE.emulator.memory().map_err(status_of)?;
        let found = match attribute {
            RESERVED_MEM_CURRENT | USED_MEM_CURRENT => memory.allocated,
            USED_MEM_HIGH => memory.peak,
            _ => return Err(DriverStatus::NotSupported),
        };
        // SAFETY: the caller passes the address of a 64-bit number for these attributes.
        unsafe { *value.cast::<u64>() = found as u64 };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolTrimTo(_pool: *mut c_void, _kept: usize) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    _stream: *mut c_void,
) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        DEVICE.check(to, bytes)?;
        // SAFETY: the caller passes as many bytes, and `to` was checked.
        unsafe {
            let from = std::slice::from_raw_parts(from.cast(), bytes);
            DEVICE.emulator.upload(to, from).map_err(status_of)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    _stream: *mut c_void,
) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        DEVICE.check(from, bytes)?;
        // SAFETY: the caller passes room for as many bytes, and `from` was checked.
        unsafe {
            let to = std::slice::from_raw_parts_mut(to.cast(), bytes);
            DEVICE.emulator.download(from, to).map_err(status_of)
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(
    to: u64,
    from: u64,
    bytes: usize,
    _stream: *mut c_void,
) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        DEVICE.check(to, bytes)?;
        DEVICE.check(from, bytes)?;
        // SAFETY: both were checked; an overlap is an error of the caller on a GPU too.
        unsafe { DEVICE.emulator.copy(from, to, bytes).map_err(status_of) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(
    at: u64,
    value: c_uchar,
    count: usize,
    _stream: *mut c_void,
) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        DEVICE.check(at, count)?;
        // SAFETY: the bytes were checked.
        unsafe { std::ptr::write_bytes(at as *mut u8, value, count) };
        Ok(())
    })
}
