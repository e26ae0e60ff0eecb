//! The CPU's arithmetic on plain slices, on all threads of one pool.
//!
//! An element has the same bits whatever the number of threads, and a row's result does not depend
//! on the rows around it. Functions are compiled for several instruction sets, and the best one
//! that the processor has is chosen when they run. All give the same bits; of products there are
//! two kinds, each with bits of its own ([`product::ProductKernel`]).

pub mod activation;
pub mod attention;
pub mod logits;
pub mod norm;
pub mod optimizer;
pub mod pool;
pub mod product;
pub mod rope;
pub mod row;
pub mod rows;
mod written;
