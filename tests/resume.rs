//! A run that is killed at any instant and continued with the same command ends in the bits of a
//! run that was not killed.
//!
//! A run that started over would end in the same bits. Therefore each test also compares the step
//! that the continued process names with the checkpoints that it found, and the lines of
//! `metrics.jsonl` up to that step with the former ones, byte for byte: they hold wall-clock times,
//! so a repeated step would have another line.
//!
//! By default each stage is killed once at a random moment, and once at each of some chosen
//! instants. `COLLIMATE_KILLS=3 cargo test --release --test resume` kills each stage three times.
//! Not tested: power loss, which drops everything that was not synced to disk; see
//! `files::durable`.

#[path = "resume/instants.rs"]
mod instants;
#[path = "resume/interrupted.rs"]
mod interrupted;
#[path = "resume/killed.rs"]
mod killed;
#[path = "stages/orpo_table.rs"]
mod orpo_table;
#[path = "resume/process.rs"]
mod process;
#[path = "stages/support.rs"]
mod support;
