//! Collimate aligns language models: `pretrain → sft → reward → ppo`, each stage resumable, in
//! one process with one copy of the weights.
//!
//! Modules import only from those beneath them, in the order that `tests/layering.rs` holds;
//! `ARCHITECTURE.md` has the picture.

pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod files;
pub mod model;
pub mod ops;
pub mod reward;
pub mod rlhf;
pub mod roles;
pub mod stages;
pub mod terminal;
pub mod train;
