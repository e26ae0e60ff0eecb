//! Causal grouped-query attention on the CPU: of packed sequences, forward and backward, and of new
//! tokens against a block-paged cache.
//!
//! Both forward passes use `kernel`, whose sums have one order, so both give the same bits.

mod backward;
mod cached;
mod kernel;
mod packed;

pub use cached::KeyValueBlocks;
pub use packed::{backward, forward};
