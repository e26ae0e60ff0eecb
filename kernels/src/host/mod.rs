//! The CPU's arithmetic on plain slices, on all threads of one pool.
//!
//! An element has the same bits whatever the number of threads, and a row's result does not depend
//! on the rows around it. Functions are compiled for several instruction sets, and the best one that
//! the processor has is chosen when they run; all give the same bits.

pub mod attention;
pub mod pool;
pub mod product;
pub mod row;
pub mod rows;
