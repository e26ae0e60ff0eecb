//! Failures around a run: its terminal is closed or full, a system limit is reached, files of the
//! run are removed or damaged, a number is far too large. Each test runs the real binary.

#[path = "bad_days/files.rs"]
mod files;
#[path = "bad_days/limits.rs"]
mod limits;
#[path = "bad_days/numbers.rs"]
mod numbers;
#[expect(
    dead_code,
    reason = "what is asserted of a continued run belongs to the tests of resuming"
)]
#[path = "resume/process.rs"]
mod process;
#[path = "stages/support.rs"]
mod support;
#[path = "bad_days/terminal.rs"]
mod terminal;
