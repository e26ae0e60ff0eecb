//! Errors of the device.

/// An operation of the device failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// There is not enough device memory.
    #[error("{requested} bytes of device memory are needed, and {free} are free")]
    OutOfMemory {
        /// Bytes that were requested.
        requested: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// The arguments of a launch do not fit the kernel: a bug of the caller.
    #[error("kernel {kernel}: {message}")]
    Launch {
        /// Name of the kernel.
        kernel: &'static str,
        /// The difference between what was passed and what is needed.
        message: String,
    },
    /// A kernel failed while it ran.
    #[error("kernel {kernel}, block {block:?}: {message}")]
    Failed {
        /// Name of the kernel.
        kernel: &'static str,
        /// Index of the block that failed.
        block: [u32; 3],
        /// The failure.
        message: String,
    },
    /// The driver or a library of the GPU reported an error.
    #[error("{operation}: {message}")]
    Device {
        /// The function that returned the error.
        operation: &'static str,
        /// The error. It may be that of an earlier kernel, which ran in the meantime.
        message: String,
    },
    /// NVRTC did not compile a source.
    #[error("NVRTC, {source_name}: {message}")]
    Compilation {
        /// The source.
        source_name: &'static str,
        /// Messages of the compiler.
        message: String,
    },
    /// Arrays of one operation are on different devices: a bug of the caller.
    #[error("{what}: arrays of two devices")]
    Devices {
        /// The operation.
        what: &'static str,
    },
    /// Two lengths that must agree differ: a bug of the caller.
    #[error("{what}: {found} elements where {expected} are needed")]
    Length {
        /// The array.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that the operation needs.
        expected: usize,
    },
    /// Sizes for which there is no kernel.
    #[error("{message}")]
    Shape {
        /// The shape or size that was found, and those that are supported.
        message: String,
    },
}

/// Result of an operation of the device.
pub type Result<T> = std::result::Result<T, KernelError>;
