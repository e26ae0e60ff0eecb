//! Parameters with their gradients, and the operations that read them.
//!
//! Each operation has one file with its forward and backward pass on the CPU and a composition of
//! candle operations, which is the oracle of the tests. Its passes on a GPU are in `gpu.rs` beside
//! it.

pub mod activation;
pub mod adapter;
pub mod attention;
pub mod backend;
pub mod embedding;
pub mod head;
pub mod linear;
pub mod norm;
pub(crate) mod operation;
pub mod param;
pub(crate) mod place;
pub mod profile;
pub(crate) mod recompute;
pub(crate) mod residual;
pub mod rope;
pub(crate) mod storage;
mod tap;
pub mod work;
