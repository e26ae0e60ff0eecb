//! Collimate aligns language models: `pretrain → sft → reward → ppo`, or `dpo` or `orpo` in place
//! of the last two. Each stage can be resumed, and all of them run in one process.
//!
//! # For users of the library
//!
//! - [`config`]: read and check a configuration ([`config::Document`], [`config::Config`]).
//! - [`stages`]: run its stages ([`stages::run()`], [`stages::run_stage`]) and plan their memory
//!   ([`stages::preflight`]).
//! - [`data`]: records, tokenizers, chat templates, packed batches.
//! - [`model`]: load, run and save decoders in Hugging Face's layout.
//! - [`reward`]: score completions by models, rules, programs and endpoints.
//! - [`rlhf`]: losses, advantages and KL estimators as functions of tensors.
//!
//! The remaining modules are public for the binary, the tests and the benches. They can change in
//! any version and are left out of these pages.
//!
//! Modules import only from those beneath them, in the order that `tests/layering.rs` checks;
//! `ARCHITECTURE.md` has the picture.

#![deny(unsafe_code)]

#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod commands;
pub mod config;
pub mod data;
#[doc(hidden)]
pub mod files;
pub mod model;
#[doc(hidden)]
pub mod ops;
#[doc(hidden)]
pub mod random;
pub mod reward;
pub mod rlhf;
#[doc(hidden)]
pub mod roles;
pub mod stages;
#[doc(hidden)]
pub mod terminal;
#[doc(hidden)]
pub mod train;
