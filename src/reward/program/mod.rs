//! A program of the user that stays and scores: one JSON line in, one JSON line out, a batch at a time.
//!
//! For each batch it reads one line from its standard input and writes one line to its standard output ([`exchange`](super::exchange)
//! says what stands in them), flushed. In Python:
//!
//! ```python
//! for line in sys.stdin:
//!     batch = json.loads(line)["completions"]
//!     print(json.dumps([float(len(c["completion"])) for c in batch]), flush=True)
//! ```
//!
//! It is started once, before training, and told that there is no more by the end of its input; if it has not ended two seconds
//! later it is killed, with all that it started. One that dies over a batch is started again and asked again, once a batch. It must
//! not remember: the score of a completion that a continued run asks for again must be the same.
//!
//! Every line beside the one for each question is an error, before the first question, between two, and after the last:
//! [`Scorer::finish`] reads the output to its end. Blank lines are passed over. The last line may lack its end. The exit code after the
//! last answer does not count. Its standard error reaches the terminal. A line may have 16 MiB, and what it says on
//! standard error for one batch 1 MiB; before it reads its first question it may say more.

mod process;

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::exchange::{LONGEST_ANSWER, question, scores, shown};
use super::{RewardBatch, RewardError, Scorer};
use crate::config::ProgramReward;
use process::{Fault, MOST_MESSAGES, ScoringProcess};

/// A program that scores.
pub struct Program {
    command: Vec<String>,
    timeout: Duration,
    running: Mutex<ScoringProcess>,
}

impl Program {
    /// Starts the program.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(config: &ProgramReward) -> Result<Self, RewardError> {
        let running = start(&config.command)?;
        Ok(Self {
            command: config.command.clone(),
            timeout: Duration::from_secs_f64(config.timeout_seconds.min(1e9)),
            running: Mutex::new(running),
        })
    }

    fn ask(&self, question: &str) -> Result<String, RewardError> {
        let mut running = self.running();
        if let Some(answer) = self.attempt(&mut running, question)? {
            return Ok(answer);
        }
        running.kill();
        *running = start(&self.command)?;
        if let Some(answer) = self.attempt(&mut running, question)? {
            return Ok(answer);
        }
        let how = running.end();
        Err(self.failed(format!(
            "ended ({how}) instead of answering, and did so again when it was started anew; what it says stands above"
        )))
    }

    /// The answer; none if the program died over the question.
    fn attempt(
        &self,
        running: &mut ScoringProcess,
        question: &str,
    ) -> Result<Option<String>, RewardError> {
        match running.ask(question, self.timeout) {
            Ok(answer) => Ok(Some(answer)),
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
                "did not answer within {} seconds; raise timeout_seconds, or see that it flushes its output after each line",
                self.timeout.as_secs_f64()
            ),
            Fault::Surplus(line) => format!(
                "wrote a line that nobody asked for ({}), so scores may have gone to the wrong batch; it must write one line for each that \
                 it reads, and all else to standard error",
                shown(line.trim_end())
            ),
            Fault::EndlessLine => format!(
                "wrote {} MiB without the end of a line; it must answer with one line of JSON",
                LONGEST_ANSWER / MIB
            ),
            Fault::Flood => format!(
                "wrote more than {} MiB to standard error over one batch; let it say less",
                MOST_MESSAGES / MIB
            ),
        }
    }

    fn running(&self) -> MutexGuard<'_, ScoringProcess> {
        // A thread that panicked over the lock left a process like any other.
        self.running.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn failed(&self, message: String) -> RewardError {
        failed(&self.command, message)
    }
}

impl Scorer for Program {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        let answer = self.ask(&question(batch.completions).to_string())?;
        scores(&answer, batch.completions.len()).map_err(|message| self.failed(message))
    }

    fn finish(&self) -> Result<(), RewardError> {
        let finished = self.running().finish();
        finished.map_err(|fault| self.failed(self.words(fault)))
    }
}

fn start(command: &[String]) -> Result<ScoringProcess, RewardError> {
    ScoringProcess::start(command).map_err(|error| {
        failed(
            command,
            format!(
                "cannot be started: {error}; command takes a program and its arguments, [\"python3\", \"reward.py\"]"
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
