//! Kernels in CUDA C++, and the code that launches them.
//!
//! The kernels are the sources under `cuda/`. The modules here know their arguments and grids, and
//! run them through a [`Launcher`]: the driver compiles the sources for a GPU (feature `cuda`), and
//! the emulator executes them on a CPU (feature `emulate`).
//!
//! Kernels are deterministic: no floating-point atomics, and sums in an order that depends on the
//! sizes alone.

mod array;
mod call;
mod error;
mod kernel;
mod launcher;
#[cfg(any(feature = "cuda", feature = "emulate"))]
mod source;

pub mod activation;
pub mod attention;
pub mod logits;
pub mod norm;
pub mod optimizer;
pub mod product;
pub mod rope;
pub mod rows;
pub mod sampling;

#[cfg(feature = "cuda")]
pub mod driver;
#[cfg(feature = "emulate")]
pub mod emulator;

pub use array::{Array, Gpu, Number, Slice, SliceMut};
pub use error::{KernelError, Result};
pub use kernel::Kernel;
pub use launcher::{Allocation, Argument, DeviceMemory, Factor, FactorType, Gemm, Grid, Launcher};
#[cfg(any(feature = "cuda", feature = "emulate"))]
pub use source::{HEADERS, SOURCES, Source};
