//! The commands that do not train: `generate` completes prompts, `score` scores texts, `export`
//! merges an adapter, `config` explains keys.
//!
//! `generate` and `score` read and write JSON Lines. They check all input before they read weights,
//! so that a bad line costs a moment; the output file appears whole or not at all.
//!
//! Not here: the stages that train ([`crate::stages`]), and the flags ([`crate::cli`]).

mod config;
mod export;
mod generate;
mod inputs;
mod output;
mod score;

pub use config::config;
pub use export::export;
pub use generate::generate;
pub use score::score;
