//! The binary as its users meet it: run in fresh folders, judged by its files, messages and exit
//! codes.

#[path = "cli/adapters.rs"]
mod adapters;
#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/endings.rs"]
mod endings;
#[path = "cli/folders.rs"]
mod folders;
#[path = "cli/golden.rs"]
mod golden;
#[path = "cli/hostile.rs"]
mod hostile;
#[path = "stages/language.rs"]
mod language;
#[path = "cli/plan.rs"]
mod plan;
#[path = "cli/probe.rs"]
mod probe;
#[path = "cli/records.rs"]
mod records;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/text.rs"]
mod text;
#[path = "cli/usage.rs"]
mod usage;
