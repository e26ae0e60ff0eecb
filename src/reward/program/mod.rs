//! A user's program that stays running and scores batches: one JSON line in, one JSON line out.
//!
//! For each batch the program reads one line from standard input and writes one line to standard
//! output, flushed ([`exchange`](super::exchange) documents the JSON). In Python:
//!
//! ```python
//! for line in sys.stdin:
//!     batch = json.loads(line)["completions"]
//!     print(json.dumps([float(len(c["completion"])) for c in batch]), flush=True)
//! ```
//!
//! The program is started once, before training, and ends when its input ends; if it still runs two
//! seconds later it is killed with all its descendants. If it dies during a batch it is restarted,
//! which a note says, and the batch repeated, once a batch. It must be stateless: a continued run
//! requests scores again, which must be the same.
//!
//! Every line besides one for each request is an error, before the first request, between two, and
//! after the last: [`Scorer::finish`] reads the output to its end. Blank lines are ignored, and the
//! last line may lack its newline. The exit code after the last response is ignored. Standard error
//! is passed on to the terminal. A line may have 16 MiB, and standard error 1 MiB for each batch;
//! before the first request it is unlimited.

mod process;

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::exchange::{LONGEST_RESPONSE, ResponseForm, request_json, scores, shown};
use super::{RewardBatch, RewardError, Scorer};
use crate::config::ProgramReward;
use crate::terminal;
use process::{Fault, MOST_MESSAGES, ScoringProcess};

/// A running program that scores completions.
pub struct Program {
    /// Name of the reward, for notes.
    name: String,
    command: Vec<String>,
    timeout: Duration,
    running: Mutex<Running>,
}

/// The process of a program, and how often it was started again.
struct Running {
    process: ScoringProcess,
    restarts: usize,
}

impl Program {
    /// Starts the program of the reward `name`.
    ///
    /// # Errors
    /// If the system cannot start it.
    pub fn start(name: &str, config: &ProgramReward) -> Result<Self, RewardError> {
        let running = Running {
            process: start(&config.command)?,
            restarts: 0,
        };
        Ok(Self {
            name: name.to_owned(),
            command: config.command.clone(),
            timeout: Duration::from_secs_f64(config.timeout_seconds.min(1e9)),
            running: Mutex::new(running),
        })
    }

    fn response_to(&self, request: &str) -> Result<String, RewardError> {
        let mut running = self.running();
        if let Some(response) = self.attempt(&mut running.process, request)? {
            return Ok(response);
        }
        let how = running.process.end();
        running.process = start(&self.command)?;
        running.restarts += 1;
        terminal::note(self.restart_note(&how, running.restarts));
        if let Some(response) = self.attempt(&mut running.process, request)? {
            return Ok(response);
        }
        let how = running.process.end();
        Err(self.failed(format!(
            "ended ({how}) without answering, also after a restart; its own messages are above"
        )))
    }

    fn restart_note(&self, how: &str, restarts: usize) -> String {
        let s = if restarts == 1 { "" } else { "s" };
        format!(
            "reward {}: the program ended ({how}) and was started again ({restarts} restart{s} so \
             far)",
            self.name
        )
    }

    /// The response; `None` if the program died during the request.
    fn attempt(
        &self,
        running: &mut ScoringProcess,
        request: &str,
    ) -> Result<Option<String>, RewardError> {
        match running.response_to(request, self.timeout) {
            Ok(response) => Ok(Some(response)),
            Err(Fault::Died) => Ok(None),
            Err(fault) => {
                running.kill();
                Err(self.failed(self.words(fault)))
            }
        }
    }

    fn words(&self, fault: Fault) -> String {
        const MIB: usize = 1 << 20;
        match fault {
            Fault::Died => "ended".to_owned(),
            Fault::TooLate => format!(
                "did not answer within {} seconds; raise timeout_seconds, or check that it flushes \
                 its output after each line",
                self.timeout.as_secs_f64()
            ),
            Fault::Surplus(line) => format!(
                "wrote an extra line ({}), so scores may have gone to the wrong batch; it must \
                 write one line for each line that it reads, and everything else to standard error",
                shown(line.trim_end())
            ),
            Fault::EndlessLine => format!(
                "wrote {} MiB without a newline; it must answer with one line of JSON",
                LONGEST_RESPONSE / MIB
            ),
            Fault::Flood => format!(
                "wrote more than {} MiB to standard error during one batch; make it print less",
                MOST_MESSAGES / MIB
            ),
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        // A panic while the lock was held left the process usable.
        self.running.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn failed(&self, message: String) -> RewardError {
        failed(&self.command, message)
    }
}

impl Scorer for Program {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        let response = self.response_to(&request_json(batch.completions).to_string())?;
        let scores = scores(&response, batch.completions, ResponseForm::Line);
        scores.map_err(|message| self.failed(message))
    }

    fn finish(&self) -> Result<(), RewardError> {
        let finished = self.running().process.finish();
        finished.map_err(|fault| self.failed(self.words(fault)))
    }
}

fn start(command: &[String]) -> Result<ScoringProcess, RewardError> {
    ScoringProcess::start(command).map_err(|error| {
        failed(
            command,
            format!(
                "cannot be started: {error}; command is a program and its arguments, for example \
                 [\"python3\", \"reward.py\"]"
            ),
        )
    })
}

fn failed(command: &[String], message: String) -> RewardError {
    RewardError::Program {
        command: command.join(" "),
        message,
    }
}

#[cfg(all(test, unix))]
mod tests;
