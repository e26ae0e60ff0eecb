//! The stages, one loop each, and what runs them in order.

mod adapters;
mod architecture;
mod arithmetic;
mod changes;
mod context;
mod dataset;
mod definition;
mod device_memory;
mod dpo;
mod examples;
mod first_records;
mod freezing;
mod language;
mod origin;
mod orpo;
mod overlap;
pub(crate) mod padding;
mod pairs;
pub mod plan;
mod ppo;
pub mod preflight;
mod pretrain;
mod probe;
pub(crate) mod record_report;
mod reward;
mod run;
mod sft;
mod stops;
mod supervised;
mod tokenizer;

pub use context::{Context, Finished};
pub use definition::{CommandHelp, help};
pub use overlap::warnings;
pub use probe::{ProbeReport, probe};
pub use run::{run, run_stage};
