//! libcuda: streams and events. All work is done when a call returns, so nothing waits.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Numbers of streams; 0 to 2 are the driver's own.
static NEXT: AtomicUsize = AtomicUsize::new(16);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) -> c_int {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the caller passes the address of a handle.
    unsafe { *stream = std::ptr::without_provenance_mut(number) };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(_stream: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(_stream: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(
    _stream: *mut c_void,
    _event: *mut c_void,
    _flags: c_uint,
) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(_stream: *mut c_void, capturing: *mut c_int) -> c_int {
    // SAFETY: the caller passes the address of a number.
    unsafe { *capturing = 0 };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, _flags: c_uint) -> c_int {
    // SAFETY: the caller passes the address of a handle.
    unsafe { *event = Box::into_raw(Box::new(Instant::now())).cast() };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: *mut c_void, _stream: *mut c_void) -> c_int {
    // SAFETY: the handle is one of `cuEventCreate`, and the caller does not use it at once
    // elsewhere.
    unsafe { *event.cast() = Instant::now() };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(
    milliseconds: *mut f32,
    start: *mut c_void,
    end: *mut c_void,
) -> c_int {
    // SAFETY: both handles are of `cuEventCreate`, and the caller passes the address of a number.
    unsafe {
        let (start, end): (Instant, Instant) = (*start.cast(), *end.cast());
        *milliseconds = end.saturating_duration_since(start).as_secs_f32() * 1e3;
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(
    milliseconds: *mut f32,
    start: *mut c_void,
    end: *mut c_void,
) -> c_int {
    // SAFETY: as in `cuEventElapsedTime`.
    unsafe { cuEventElapsedTime(milliseconds, start, end) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(_event: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(_event: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> c_int {
    // SAFETY: the handle is one of `cuEventCreate` and is not used after this.
    drop(unsafe { Box::from_raw(event.cast::<Instant>()) });
    0
}
