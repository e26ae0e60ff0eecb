//! Stopping by a signal: the first SIGINT or SIGTERM asks the run to save and end, the second ends
//! it at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Exit code of a run that a signal stopped: 128 + SIGINT, as shells count.
pub const EXIT_STOPPED: u8 = 130;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All was done.
    Finished,
    /// A signal came; the state is saved and the same command goes on from there.
    Stopped,
}

/// Whether the run has been asked to stop. Clones share the answer.
#[derive(Clone, Debug, Default)]
pub struct StopRequest {
    requested: Arc<AtomicBool>,
}

impl StopRequest {
    /// Listens for SIGINT and SIGTERM from now on.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn listen() -> io::Result<Self> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the shutdown acts only if the flag was already set by an earlier
            // signal.
            flag::register_conditional_shutdown(
                signal,
                EXIT_STOPPED.into(),
                Arc::clone(&stop.requested),
            )?;
            flag::register(signal, Arc::clone(&stop.requested))?;
        }
        Ok(stop)
    }

    /// Whether to save and end. Stages ask between steps.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// What a signal sets, for code that knows no more than a flag.
    pub fn flag(&self) -> &AtomicBool {
        &self.requested
    }

    /// Asks to stop, as a signal does.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }
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
}
