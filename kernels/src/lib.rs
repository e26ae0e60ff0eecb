//! The arithmetic of a transformer's training and generation, on the CPU and on a GPU: operations
//! on plain slices ([`host`]) and on arrays of a device ([`device`]), without a graph of gradients,
//! models or files.
//!
//! The order of every sum is fixed, so a result has the same bits whatever the number of threads.

pub mod arguments;
pub mod attention;
pub mod device;
pub mod host;
pub mod random;
