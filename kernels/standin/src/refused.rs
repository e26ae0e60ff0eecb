//! libcublas and libcurand, which candle opens with a device and the engine does not use, and the
//! functions that nothing on the engine's path may call.

use std::ffi::{c_int, c_void};

use crate::say;

/// Functions that open and close a library: they do nothing.
macro_rules! accepted {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($argument: $type),*) -> c_int {
            $(let _ = $argument;)*
            0
        }
    )*};
}

/// Functions that are errors, with the status "not supported" of their library. They ignore their
/// arguments.
macro_rules! refused {
    ($status:literal: $($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() -> c_int {
            say(format_args!("{} is not emulated", stringify!($name)));
            $status
        }
    )*};
}

/// Writes a handle that no one follows.
macro_rules! created {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(handle: *mut *mut c_void, $($argument: $type),*) -> c_int {
            $(let _ = $argument;)*
            // SAFETY: the caller passes the address of a handle.
            unsafe { *handle = std::ptr::without_provenance_mut(5) };
            0
        }
    )*};
}

created! {
    cublasCreate_v2();
    curandCreateGenerator(_kind: c_int);
}

accepted! {
    cublasDestroy_v2(_handle: *mut c_void);
    cublasSetStream_v2(_handle: *mut c_void, _stream: *mut c_void);
    curandDestroyGenerator(_generator: *mut c_void);
    curandSetStream(_generator: *mut c_void, _stream: *mut c_void);
    curandSetPseudoRandomGeneratorSeed(_generator: *mut c_void, _seed: u64);
}

refused! { 801:
    cuCtxDestroy_v2
    cuMemcpyPeerAsync
    cuModuleLoad
}

refused! { 15:
    cublasDgemmStridedBatched
    cublasGemmStridedBatchedEx
}
