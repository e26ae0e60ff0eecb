//! A stand-in for NVIDIA's driver and libraries: one emulated GPU behind the functions of libcuda,
//! libnvrtc, libcublasLt, libcublas and libcurand that candle, cudarc and the kernels' driver call.
//!
//! With it a program that is built for CUDA runs on a machine without a GPU, through its own code
//! down to the driver's interface. `.ci/standin` builds it under the names of the libraries.
//!
//! It runs the kernels under `kernels/cuda` and products of cuBLASLt, and nothing else: NVRTC takes
//! exactly the sources that the emulator was built from, and a kernel or a function that it does
//! not know is an error that is printed with its name. So a run that ends well shows that none of
//! candle's kernels was launched but those that `candle.rs` lists. All work is done before a call
//! returns.
//!
//! Environment: `STANDIN_ORDER`, the order of threads: `forward` (the default), `reverse` or a
//! seed; `STANDIN_MEMORY`, bytes of memory (8 GiB).

#![cfg(feature = "emulate")]
// The functions have the names and the contracts of the libraries' documentation.
#![allow(non_snake_case, missing_docs, clippy::missing_safety_doc)]

mod candle;
mod cublaslt;
mod device;
mod driver;
mod memory;
mod module;
mod nvrtc;
mod refused;
mod stream;

/// Returns the status that `f` ends with: that of success, 0, or of an error.
fn status<S: Into<i32>>(f: impl FnOnce() -> Result<(), S>) -> i32 {
    f().map_or_else(Into::into, |()| 0)
}

/// Prints what a program asked for in vain.
fn say(message: std::fmt::Arguments) {
    eprintln!("emulated GPU: {message}");
}
