//! The one place that writes to the terminal: notes and progress on standard error, results on
//! standard output.
//!
//! The files of a run are its record. A terminal that was closed, or that is full, costs lines and
//! stops nothing: output that fails, or that a reader leaves in a full pipe, is dropped. A command
//! whose product is its output asks [`product`] whether it arrived, and waits for its reader, as
//! Unix tools do.

pub mod phase;
mod stream;
pub mod words;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use phase::Phase;
use stream::{STDERR, STDOUT};

/// Columns of a terminal that does not say how wide it is, and the most that a line of progress
/// takes.
pub const COLUMNS: usize = 80;

/// The line of progress at the bottom of the terminal; empty where there is none.
static STATUS: Mutex<String> = Mutex::new(String::new());

/// True if notes and progress are left out.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether the reader of a command's output has closed the pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Reader {
    /// The output can be written.
    Reads,
    /// The pipe was closed, as `head` does when it has seen enough; the command can stop.
    Gone,
}

/// Leaves out notes and progress from now on; results and errors are still written.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// True if standard error is a terminal that shows progress as a line that changes in place.
pub fn is_live() -> bool {
    !is_quiet() && io::stderr().is_terminal()
}

/// Writes a note to standard error, above the line of progress, unless notes are left out.
pub fn note(text: impl Display) {
    if !is_quiet() {
        error(text);
    }
}

/// Writes a line of an error to standard error, above the line of progress.
pub fn error(text: impl Display) {
    let status = lock();
    let line = match status.is_empty() {
        true => format!("{text}\n"),
        false => format!("\r\x1b[2K{text}\n{status}"),
    };
    STDERR.offer(line.as_bytes());
}

/// Passes on what a program of the user wrote to its standard error.
pub fn pass_on(bytes: &[u8]) {
    let _one_at_a_time = lock();
    STDERR.offer(bytes);
}

/// Writes a note unless the same was written before: a model folder is read by several roles.
pub fn note_once(text: impl Display) {
    static WRITTEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let text = text.to_string();
    let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    if !written.contains(&text) {
        note(&text);
        written.insert(text);
    }
}

/// Writes a line of results to standard output.
pub fn print(text: impl Display) {
    let mut status = lock();
    clear(&mut status);
    STDOUT.offer(format!("{text}\n").as_bytes());
}

/// Writes a line of a command's product to standard output.
///
/// # Errors
/// If it cannot be written, other than to a closed pipe.
pub fn product(text: impl Display) -> io::Result<Reader> {
    match write_out(&text) {
        Ok(()) => Ok(Reader::Reads),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("cannot write to standard output: {error}"),
        )),
    }
}

/// Shows a line of progress that the next one replaces; an empty one takes it away. For [`is_live`]
/// terminals.
pub fn show_status(line: String) {
    let mut status = lock();
    if *status == line {
        return;
    }
    STDERR.offer(format!("\r\x1b[2K{line}").as_bytes());
    *status = line;
}

/// `text` in at most `columns` columns, the last of them an ellipsis where it was cut.
pub fn fit(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let kept = text.chars().take(columns.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// Columns that a line of progress may take on this terminal: it must not wrap, or it could not be
/// replaced.
pub fn columns() -> usize {
    let (_, columns) = console::Term::stderr().size_checked().unwrap_or_default();
    let width = match usize::from(columns) {
        0 => COLUMNS,
        columns => columns.min(COLUMNS),
    };
    width.saturating_sub(1)
}

fn write_out(text: &dyn Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{text}\n").as_bytes())?;
    out.flush()
}

fn clear(status: &mut String) {
    if !status.is_empty() {
        STDERR.offer(b"\r\x1b[2K");
        status.clear();
    }
}

fn lock() -> MutexGuard<'static, String> {
    STATUS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        assert_eq!(fit("äöü", 3), "äöü");
        assert_eq!(fit("äöüß", 3), "äö…");
        assert!(columns() < COLUMNS);
    }
}
