//! All tests of the crate's public interface, as one binary.

mod generator;
mod model;
mod refusal;
mod sampling;
