//! A trial's process: started, watched until the step that is asked for stands in its log, and ended there.
//!
//! A stage that went on would write its model; a stage may be killed at any instant, so it is.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

use super::trial::Trial;
use crate::train::metrics::names;
use crate::train::signal::StopRequest;

/// Between two looks at the log.
const PAUSE: Duration = Duration::from_millis(20);

/// What the log says of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Its number.
    pub number: u64,
    /// How long it took.
    pub seconds: f64,
    /// Passes over the data so far; PPO does not say.
    pub epochs: Option<f64>,
    /// Most bytes that the process has held.
    pub peak_bytes: Option<u64>,
}

/// Runs the trial to its last step; `None` when a signal came.
///
/// # Errors
/// If the process cannot be started or fails.
pub fn last_step(trial: &Trial, stop: &StopRequest) -> Result<Option<Step>> {
    let mut process = Process::start(trial)?;
    loop {
        if stop.is_requested() {
            return Ok(None);
        }
        // Asked before the log is read, so that what a process wrote last is not missed.
        let ended = process.0.try_wait().context("the probe's process")?;
        let last = steps(&trial.metrics())?.pop();
        match (ended, last) {
            (_, Some(step)) if step.number >= trial.last() => return Ok(Some(step)),
            (Some(status), Some(step)) if status.success() => return Ok(Some(step)),
            (Some(status), _) => bail!("{}", failure(trial, status)),
            (None, _) => std::thread::sleep(PAUSE),
        }
    }
}

/// A process that does not outlive the value.
struct Process(Child);

impl Process {
    fn start(trial: &Trial) -> Result<Self> {
        let log = trial.log();
        let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let program = std::env::current_exe().context("the program's own file")?;
        let child = Command::new(program)
            .arg(trial.stage().name())
            .arg(trial.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Ok(Self(child.context("cannot start the probe's process")?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is not there to be killed.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The steps in a log, as far as its lines are whole.
fn steps(metrics: &Path) -> Result<Vec<Step>> {
    let text = match fs::read_to_string(metrics) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("cannot read {}", metrics.display()))?,
    };
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    Ok(whole.filter_map(step).collect())
}

/// A line of the log; `None` of one that is of no step, such as the evaluation before the first.
fn step(line: &str) -> Option<Step> {
    let values: Map<String, Value> = serde_json::from_str(line).ok()?;
    let number = |name: &str| values.get(name).and_then(Value::as_f64);
    Some(Step {
        number: values.get(names::STEP)?.as_u64()?,
        seconds: number(names::TIME_STEP)?,
        epochs: number(names::TRAIN_EPOCH),
        peak_bytes: number(names::MEMORY_PEAK_BYTES).map(|bytes| bytes as u64),
    })
}

/// Why the process ended: its own words, or the signal that the system kills with where memory is out.
fn failure(trial: &Trial, status: ExitStatus) -> String {
    let said = fs::read_to_string(trial.log()).unwrap_or_default();
    let error = said
        .find("error: ")
        .map(|at| said[at + "error: ".len()..].trim());
    match error {
        Some(error) => error.to_owned(),
        None if status.code().is_none() => format!(
            "the probe was killed ({status}): most likely the machine ran out of memory; lower micro_batch_tokens or batch_size, or set \
             recompute = \"block\""
        ),
        None => format!("the probe ended with {status}: {}", said.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_steps_are_read_as_far_as_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("metrics.jsonl");
        assert_eq!(steps(&file).unwrap(), []);
        let text = "{\"step\":0,\"eval/loss\":4.0}\n\
                    {\"step\":1,\"time/step\":0.5,\"train/epoch\":0.25,\"memory/peak_bytes\":4096.0}\n\
                    {\"step\":2,\"time/st";
        fs::write(&file, text).unwrap();
        let first = Step {
            number: 1,
            seconds: 0.5,
            epochs: Some(0.25),
            peak_bytes: Some(4096),
        };
        assert_eq!(steps(&file).unwrap(), [first]);
    }
}
