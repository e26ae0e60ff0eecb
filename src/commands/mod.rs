//! The commands that use a trained model: `generate` completes prompts, `score` scores texts, `export` merges an adapter.
//!
//! The first two read JSON lines and write JSON lines. All input is read and checked before the weights are,
//! so that a bad line costs a moment; the output appears whole or not at all.
//!
//! Not here: the stages that train ([`crate::stages`]), and the flags ([`crate::cli`]).

mod export;
mod generate;
mod inputs;
mod output;
mod score;

pub use export::export;
pub use generate::generate;
pub use score::score;
