//! `plan --probe`: runs each stage for a step or two, to measure its memory and its time.
//!
//! A trial runs a stage as configured, in a process of its own, so that the peak memory is that of
//! the stage, and in a temporary folder. Each stage has two trials: one step on the longest
//! sequences that the plan allows for, which measures the memory; and some steps on its own
//! records, which measure the time. Evaluations and checkpoints are not measured.

mod long;
mod process;
mod table;
mod trial;

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::plan::StagePlan;
use super::plan::models::{RunModels, with_local_models};
use crate::config::{Config, Device, Stage};
use crate::roles::is_model;
use crate::terminal;
use crate::train::memory::available_bytes;
use crate::train::run_folder::Existing;
use crate::train::signal::StopRequest;
use trial::{Trial, TrialLengths, TrialStep};

/// The measurements of all stages.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    measured: Vec<StageMeasurement>,
    /// The reasons why the other stages could not be tried.
    skipped: Vec<String>,
    device: Device,
}

/// A stage's memory and time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct StageMeasurement {
    stage: Stage,
    /// Bytes held at once at most, by the plan.
    planned: usize,
    /// Bytes that the process held at most, on a GPU if it has one; `None` if the system does not
    /// say.
    peak: Option<u64>,
    /// Wall-clock seconds of one step.
    seconds: f64,
    /// Steps of the whole stage.
    steps: u64,
}

/// Tries each planned stage whose models and data exist; `None` if a signal came.
///
/// # Errors
/// If a stage fails, or none can be tried.
pub fn probe(config: &Config, plans: &[StagePlan]) -> Result<Option<ProbeReport>> {
    let stop = StopRequest::listen()?;
    let local = with_local_models(config, &config.stages())?;
    let (mut measured, mut skipped) = (Vec::new(), Vec::new());
    for plan in plans {
        if let Some(reason) = reason_to_skip(&local, plan) {
            skipped.push(reason);
            continue;
        }
        let found = measure(&local, plan, &stop);
        match found.with_context(|| format!("stage {}", plan.stage))? {
            Some(found) => measured.push(found),
            None => return Ok(None),
        }
    }
    if measured.is_empty() {
        bail!("no stage can be probed:\n  {}", skipped.join("\n  "));
    }
    Ok(Some(ProbeReport {
        measured,
        skipped,
        device: config.run.device,
    }))
}

/// Runs both trials of a stage.
fn measure(
    config: &Config,
    plan: &StagePlan,
    stop: &StopRequest,
) -> Result<Option<StageMeasurement>> {
    let stage = plan.stage;
    terminal::note(format_args!(
        "{stage}: one step on the longest sequences, for the memory"
    ));
    let Some((longest, _)) = try_out(config, stage, TrialLengths::Longest, stop)? else {
        return Ok(None);
    };
    terminal::note(format_args!(
        "{stage}: some steps on its own records, for the time"
    ));
    let Some((usual, steps)) = try_out(config, stage, TrialLengths::OwnRecords, stop)? else {
        return Ok(None);
    };
    Ok(Some(StageMeasurement {
        stage,
        planned: plan.peak_bytes(),
        peak: longest.peak_bytes.max(usual.peak_bytes),
        seconds: usual.seconds,
        steps,
    }))
}

/// Runs a trial; returns its last step, and the number of steps of the whole stage.
fn try_out(
    config: &Config,
    stage: Stage,
    lengths: TrialLengths,
    stop: &StopRequest,
) -> Result<Option<(TrialStep, u64)>> {
    let trial = Trial::new(config, stage, lengths)?;
    let Some(step) = process::last_step(&trial, stop)? else {
        return Ok(None);
    };
    Ok(Some((step, trial.steps(&step)?)))
}

/// The reason why a stage cannot be tried, if there is one.
fn reason_to_skip(config: &Config, plan: &StagePlan) -> Option<String> {
    let stage = plan.stage;
    let mut models = config.models_read(stage).into_iter();
    let models = models.find(|(_, folder)| !is_model(folder));
    let mut files = config.data_files(stage).into_iter();
    let files = files.find(|(_, file)| !file.exists());
    let model = models.map(|(key, folder)| {
        match RunModels(config, Existing::Continue).made_by(folder) {
            Some(maker) => format!(
                "{stage}.{key} is {}, the model that stage {maker} is yet to make; run `collimate \
             {maker}` first",
                folder.display()
            ),
            None => does_not_exist(stage, key, folder),
        }
    });
    let file = files.map(|(key, file)| does_not_exist(stage, key, file));
    model.or(file).or_else(|| too_large(config, plan))
}

fn does_not_exist(stage: Stage, key: &str, path: &Path) -> String {
    format!("{stage}.{key} is {}, which does not exist", path.display())
}

/// Refuses a trial that would exhaust the memory of the machine.
fn too_large(config: &Config, plan: &StagePlan) -> Option<String> {
    let planned = plan.peak_bytes() as u64;
    let free = available_bytes().filter(|_| config.run.device == Device::Cpu)?;
    (planned > free).then(|| {
        format!(
            "{} needs {} MiB at once, and only {} MiB of this machine's memory are free",
            plan.stage,
            planned >> 20,
            free >> 20
        )
    })
}
