//! The arithmetic of a transformer's training and generation, on a GPU: operations on arrays,
//! without a graph of gradients, models or files.

pub mod device;
