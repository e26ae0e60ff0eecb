//! Days on which something goes wrong around a run: its terminal is closed or full, limits of the system are reached, files of a
//! run are removed or damaged, a number has too many digits. The binary itself is run each time.

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
