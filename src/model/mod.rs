//! Decoder families and heads, and reading and writing them in Hugging Face's layout.
//!
//! One decoder covers all families by configuration ([`config`]); the same layers run in training,
//! over packed sequences, and in generation, over a block-paged cache ([`generator`]).

pub mod activations;
mod block;
pub mod boundary;
pub mod config;
pub(crate) mod decoder;
mod error;
pub(crate) mod fingerprint;
mod frequencies;
pub mod generator;
pub mod hf_config;
pub mod hub;
mod init;
pub mod lora;
pub(crate) mod score_position;
pub mod trunk;
pub mod weights;

pub(crate) use block::attention_of;
pub use decoder::{Decoder, Gradient, Holding, Recompute, TensorSource};
pub use error::ModelError;
