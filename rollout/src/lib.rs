//! Batched generation over a block-paged cache.
//!
//! The crate owns time and memory: which sequence advances, which cache block is whose, which token
//! is drawn, when a sequence ends. It knows tokens, blocks and logits; never a weight and never a
//! loss. [`generate`] runs requests through a [`Model`], the trait that an engine implements.
//!
//! The arithmetic of a row of logits and keyed random draws come from the crate `kernels`.
//!
//! A completion depends on its request, the seed and the model alone. Batch
//! limit, cache budget, the other requests and the order in which sequences finish change the time
//! it takes, never a token and never a log-probability.
//!
//! | module | holds |
//! |---|---|
//! | [`sampling`], `filter` | sampling a token; top-k, top-p and min-p |
//! | [`device`] | sampling on a GPU |
//! | [`model`] | the trait that a model implements |
//! | `blocks` | the pool of cache blocks |
//! | `settings` | requests, settings and their checks |
//! | `sequence`, `scheduler` | the state of a sample; when samples advance, wait or are preempted |
//! | `generator` | the loop |

#![forbid(unsafe_code)]

mod blocks;
pub mod device;
mod error;
mod filter;
mod generator;
pub mod model;
pub mod sampling;
mod scheduler;
mod sequence;
mod settings;

pub use error::Error;
pub use generator::{Completion, GenerationOutput, GenerationProgress, GenerationStats, generate};
pub use model::{BLOCK_TOKENS, CacheSpec, Chunk, Model, ModelResult, ModelStep, Next};
pub use sampling::{Decoding, Draw, Drawn, Sampling, SequenceId, draw_row};
pub use sequence::Finish;
pub use settings::{CacheBudget, GenerationSettings, LastToken, Request, StopText, check};
