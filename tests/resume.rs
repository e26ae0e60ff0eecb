//! Killed at any instant, a run continued by the same command ends in the bits of one that was not killed.
//!
//! By default each stage is killed once. `COLLIMATE_KILLS=3 cargo test --release --test resume` kills each three times, spread over
//! the stage. What is left out: loss of power, which takes what the disk was not told to keep; `files::durable` is for that.

#[path = "resume/interrupted.rs"]
mod interrupted;
#[path = "resume/killed.rs"]
mod killed;
#[path = "resume/process.rs"]
mod process;
#[path = "stages/support.rs"]
mod support;
