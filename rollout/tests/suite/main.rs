//! All tests of the crate that go through its public face, as one binary.

mod generator;
mod model;
mod random;
mod refusal;
mod row;
mod sampling;
