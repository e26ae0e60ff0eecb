//! Decoder families, heads, and the Hugging Face layout in and out.
//!
//! One decoder covers all families by configuration ([`config`]); the same layers run in training, over packed sequences, and in
//! generation, over a block-paged cache ([`generator`]).

mod block;
pub mod boundary;
pub mod config;
pub mod decoder;
mod error;
pub mod fingerprint;
mod frequencies;
pub mod generator;
pub mod hf_config;
pub mod hub;
mod init;
pub mod lora;
pub mod score_position;
pub mod trunk;
pub mod weights;

pub use decoder::{Decoder, Gradient, Holding, Recompute, TensorSource};
pub use error::ModelError;
