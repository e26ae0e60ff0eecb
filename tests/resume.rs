//! Killed at any instant, a run continued by the same command ends in the bits of one that was not
//! killed.
//!
//! A run that began anew would end in the same bits, too. So each test also holds what the
//! continued process says of the step after which it goes on against the checkpoints that it found,
//! and the lines of `metrics.jsonl` up to there against those that stood there before, letter by
//! letter: they hold wall-clock times, and a step that is done again has others.
//!
//! By default each stage is killed once at a drawn moment, and once at each of some chosen
//! instants. `COLLIMATE_KILLS=3 cargo test --release --test resume` kills each three times, spread
//! over the stage. What is left out: loss of power, which takes what the disk was not told to keep;
//! `files::durable` is for that.

#[path = "resume/instants.rs"]
mod instants;
#[path = "resume/interrupted.rs"]
mod interrupted;
#[path = "resume/killed.rs"]
mod killed;
#[path = "resume/process.rs"]
mod process;
#[path = "stages/support.rs"]
mod support;
