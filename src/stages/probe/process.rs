//! The process of a trial: started, watched until the last step of the trial is in its metrics, and
//! killed before it writes a model. A stage may be killed at any instant.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow};
use serde_json::{Map, Value};

use super::trial::{Trial, TrialStep};
use crate::config::Stage;
use crate::terminal;
use crate::train::metrics::names;
use crate::train::signal::StopRequest;

/// Time between two reads of the metrics.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs the trial to its last step; `None` if a signal came.
///
/// # Errors
/// If the process cannot be started or fails.
pub fn last_step(trial: &Trial, stop: &StopRequest) -> Result<Option<TrialStep>> {
    let step = run_to_last_step(trial, stop);
    pass_on(trial);
    step
}

fn run_to_last_step(trial: &Trial, stop: &StopRequest) -> Result<Option<TrialStep>> {
    let mut process = TrialProcess::start(trial)?;
    loop {
        if stop.is_requested() {
            return Ok(None);
        }
        // Checked before the metrics are read, so that the last lines of a process are not missed.
        let ended = process.0.try_wait().context("the probe's process")?;
        let last = steps(&trial.metrics())?.pop();
        match (ended, last) {
            (_, Some(step)) if step.number >= trial.last() => return Ok(Some(step)),
            (Some(status), Some(step)) if status.success() => return Ok(Some(step)),
            (Some(status), _) => return Err(failure(trial, status)),
            (None, _) => std::thread::sleep(PAUSE),
        }
    }
}

/// A process that is killed with the value.
struct TrialProcess(Child);

impl TrialProcess {
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

impl Drop for TrialProcess {
    fn drop(&mut self) {
        // A process that has ended cannot be killed.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The steps in a metrics file, without an incomplete last line.
fn steps(metrics: &Path) -> Result<Vec<TrialStep>> {
    let text = match fs::read_to_string(metrics) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("cannot read {}", metrics.display()))?,
    };
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    Ok(whole.filter_map(step).collect())
}

/// The step of a line; `None` if the line is that of the evaluation before the first step.
fn step(line: &str) -> Option<TrialStep> {
    let values: Map<String, Value> = serde_json::from_str(line).ok()?;
    let number = |name: &str| values.get(name).and_then(Value::as_f64);
    Some(TrialStep {
        number: values.get(names::STEP)?.as_u64()?,
        seconds: number(names::TIME_STEP)?,
        epochs: number(names::TRAIN_EPOCH),
        peak_bytes: number(names::MEMORY_DEVICE_PEAK_BYTES)
            .or_else(|| number(names::MEMORY_PEAK_BYTES))
            .map(|bytes| bytes as u64),
    })
}

/// Passes on what the stage and its reward programs wrote to standard error before an error of the
/// stage, each line once.
fn pass_on(trial: &Trial) {
    let log = fs::read_to_string(trial.log()).unwrap_or_default();
    let (before, _) = split_error(&log);
    let lines = before.lines().filter(|line| !line.trim().is_empty());
    lines.for_each(terminal::note_once);
}

/// A log up to the error that ended the stage, and that error.
fn split_error(log: &str) -> (&str, Option<&str>) {
    const ERROR: &str = "error: ";
    let at_line = |&(at, _): &(usize, &str)| at == 0 || log[..at].ends_with('\n');
    match log.rmatch_indices(ERROR).find(at_line) {
        Some((at, _)) => (&log[..at], Some(log[at + ERROR.len()..].trim())),
        None => (log, None),
    }
}

/// The error of a trial that failed: that of the stage, or the signal of a system out of memory.
fn failure(trial: &Trial, status: ExitStatus) -> Error {
    let log = fs::read_to_string(trial.log()).unwrap_or_default();
    match split_error(&log) {
        (_, Some(error)) => chain(error, trial.stage()),
        (_, None) if status.code().is_none() => anyhow!(
            "the probe was killed ({status}): most likely the machine ran out of memory; lower \
             micro_batch_tokens or batch_size, or set recompute = \"block\""
        ),
        (log, None) => anyhow!("the probe ended with {status}: {}", log.trim()),
    }
}

/// An error and its causes, as the stage printed them. The stage's name is left out, for the probe
/// names it too.
fn chain(printed: &str, stage: Stage) -> Error {
    let named = format!("stage {stage}");
    let causes = printed.split("\n  caused by: ").map(str::to_owned);
    let mut causes: Vec<String> = causes.filter(|cause| *cause != named).collect();
    let root = Error::msg(causes.pop().unwrap_or(named));
    causes.into_iter().rev().fold(root, Error::context)
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
                    {\"step\":1,\"time/step\":0.5,\"train/epoch\":0.25,\
                    \"memory/peak_bytes\":4096.0}\n\
                    {\"step\":2,\"time/st";
        fs::write(&file, text).unwrap();
        let first = TrialStep {
            number: 1,
            seconds: 0.5,
            epochs: Some(0.25),
            peak_bytes: Some(4096),
        };
        assert_eq!(steps(&file).unwrap(), [first]);
    }

    #[test]
    fn the_error_of_a_stage_is_told_from_what_its_programs_wrote() {
        let log =
            "loading\nValueerror: a\nerror: stage ppo\n  caused by: iteration 1\n  caused by: b\n";
        let (before, error) = split_error(log);
        assert_eq!(before, "loading\nValueerror: a\n");
        let error = chain(error.unwrap(), Stage::Ppo);
        let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        assert_eq!(causes, ["iteration 1", "b"]);
        assert_eq!(split_error("loading\n"), ("loading\n", None));
    }
}
