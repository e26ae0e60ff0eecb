//! Stopping by a signal: on the first SIGINT, SIGTERM or SIGHUP the run saves and ends; a second
//! SIGINT or SIGTERM ends it at once.
//!
//! A closing terminal sends SIGHUP, sometimes twice, and a closing session also sends SIGTERM.
//! Therefore a SIGHUP never ends a run before it has saved. Where SIGHUP was ignored when the
//! program started (`nohup`), it stays ignored.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// Exit code of a run that a signal stopped: 128 + SIGINT, as in shells.
pub const EXIT_STOPPED: u8 = 130;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command completed.
    Finished,
    /// A signal came; the state is saved and the same command continues from there.
    Stopped,
}

/// A request to stop, set by a signal. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct StopRequest {
    requested: Arc<AtomicBool>,
}

impl StopRequest {
    /// Listens for SIGINT, SIGTERM and SIGHUP from now on.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn listen() -> io::Result<Self> {
        let stop = Self::default();
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the shutdown acts only if the flag was already set by an earlier
            // signal.
            flag::register_conditional_shutdown(signal, EXIT_STOPPED.into(), Arc::clone(&asked))?;
            flag::register(signal, Arc::clone(&asked))?;
            flag::register(signal, Arc::clone(&stop.requested))?;
        }
        if !is_ignored(SIGHUP) {
            flag::register(SIGHUP, Arc::clone(&stop.requested))?;
        }
        Ok(stop)
    }

    /// Whether a signal has come; stages then save and end between two steps.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// The flag that a signal sets.
    pub fn flag(&self) -> &AtomicBool {
        &self.requested
    }

    /// Requests a stop, as a signal does.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }
}

/// Whether the process ignores the signal, a setting that it may have inherited.
#[expect(unsafe_code, reason = "sigaction is a call of the C library")]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: a struct of plain numbers, for which zeros are a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action the call only writes the present one to `action`.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_a_request() {
        let stop = StopRequest::listen().unwrap();
        let seen_elsewhere = stop.clone();
        assert!(!stop.is_requested());
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(seen_elsewhere.is_requested());
    }

    #[test]
    fn a_terminal_that_closes_is_a_request_however_often_it_says_so() {
        let stop = StopRequest::listen().unwrap();
        for _ in 0..3 {
            signal_hook::low_level::raise(SIGHUP).unwrap();
        }
        assert!(stop.is_requested());
    }
}
