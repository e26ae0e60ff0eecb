//! libcuda: the device and its context.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::device::DriverStatus::{InvalidValue, NotFound};
use crate::device::{DEVICE, DriverStatus};
use crate::status;

/// The version of CUDA, 12.8.
pub const VERSION: c_int = 12_080;
/// The context, whose address no one follows.
const CONTEXT: *mut c_void = std::ptr::without_provenance_mut(1);

/// Attributes of the device, by their numbers in `cuda.h`: those of an H200.
const ATTRIBUTES: [(c_int, c_int); 8] = [
    (1, 1024),          // MAX_THREADS_PER_BLOCK
    (8, 48 << 10),      // MAX_SHARED_MEMORY_PER_BLOCK
    (10, 32),           // WARP_SIZE
    (16, 132),          // MULTIPROCESSOR_COUNT
    (75, 9),            // COMPUTE_CAPABILITY_MAJOR
    (76, 0),            // COMPUTE_CAPABILITY_MINOR
    (97, SHARED_BYTES), // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    (115, 1),           // MEMORY_POOLS_SUPPORTED
];

/// Bytes of shared memory that a block can have on request.
pub const SHARED_BYTES: c_int = 227 << 10;

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: the caller passes the address of a number.
    unsafe { *version = VERSION };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    // SAFETY: the caller passes the address of a number.
    unsafe { *count = 1 };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    const INVALID_DEVICE: c_int = 101;
    if ordinal != 0 {
        return INVALID_DEVICE;
    }
    // SAFETY: the caller passes the address of a number.
    unsafe { *device = 0 };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) -> c_int {
    let text = b"Emulated GPU\0";
    let len = usize::try_from(len).unwrap_or(0).min(text.len());
    // SAFETY: the caller passes a buffer of `len` bytes.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, len) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> c_int {
    // SAFETY: the caller passes the address of a number.
    unsafe { *bytes = DEVICE.bytes };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: c_int,
    _device: c_int,
) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        let found = ATTRIBUTES.iter().find(|(known, _)| *known == attribute);
        let (_, known) = found.ok_or_else(|| {
            crate::say(format_args!("no device attribute {attribute}"));
            InvalidValue
        })?;
        // SAFETY: the caller passes the address of a number.
        unsafe { *value = *known };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(
    context: *mut *mut c_void,
    _device: c_int,
) -> c_int {
    // SAFETY: the caller passes the address of a handle.
    unsafe { *context = CONTEXT };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> c_int {
    // SAFETY: the caller passes the address of a handle.
    unsafe { *context = CONTEXT };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(_context: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> c_int {
    0
}

/// Name and text of an error.
fn error_text(error: c_int) -> Option<(&'static CStr, &'static CStr)> {
    Some(match error {
        0 => (c"CUDA_SUCCESS", c"no error"),
        1 => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        2 => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        101 => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        200 => (
            c"CUDA_ERROR_INVALID_IMAGE",
            c"device kernel image is invalid",
        ),
        500 => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        719 => (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
        801 => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        _ => return None,
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: c_int, text: *mut *const c_char) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        let (name, _) = error_text(error).ok_or(InvalidValue)?;
        // SAFETY: the caller passes the address of a pointer.
        unsafe { *text = name.as_ptr() };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: c_int, text: *mut *const c_char) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        let (_, words) = error_text(error).ok_or(InvalidValue)?;
        // SAFETY: the caller passes the address of a pointer.
        unsafe { *text = words.as_ptr() };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    symbol: *const c_char,
    function: *mut *mut c_void,
    _version: c_int,
    _flags: u64,
    _found: *mut c_int,
) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        // SAFETY: the caller passes a name and the address of a pointer.
        unsafe {
            if CStr::from_ptr(symbol) != c"cuFuncGetParamInfo" {
                return Err(NotFound);
            }
            *function = crate::module::cuFuncGetParamInfo as *mut c_void;
        }
        Ok(())
    })
}
