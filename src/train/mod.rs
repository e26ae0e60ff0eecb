//! The parts that all stages train with: optimizer, schedule, accumulation, checkpoints, metrics,
//! progress.

pub mod batch_order;
mod best;
pub mod checkpoint;
pub mod configured;
pub mod float;
pub mod memory;
pub mod metrics;
pub mod objective;
pub mod optimizer;
pub mod process;
pub mod profile;
pub mod progress;
pub mod rollback;
pub mod run_folder;
pub mod schedule;
pub mod signal;
pub mod snapshot;
pub mod stage_loop;
pub mod summary;
pub mod supervised;

use crate::files::durable;
