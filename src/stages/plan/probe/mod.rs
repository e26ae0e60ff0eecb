//! `plan --probe`: the stages themselves, for a step or two, to see whether they fit and how long they will take.
//!
//! A trial is a run of a stage as configured, in a process of its own, so that its peak memory is its own, and in a temporary folder
//! that goes with it. Each stage has two: one step on the longest sequences that it may meet, as the plan takes them, for the memory;
//! and some steps on its own records, for the time. Not measured is what comes seldom: evaluations and checkpoints.

mod long;
mod process;
mod table;
mod trial;

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::Plan;
use super::models::{Folders, is_model};
use crate::config::{Config, Device, Stage};
use crate::terminal;
use crate::train::memory::available_bytes;
use crate::train::signal::StopRequest;
use process::Step;
use trial::{Lengths, Trial};

/// What the trials of all stages came to.
#[derive(Clone, Debug)]
pub struct Probed {
    stages: Vec<(Stage, Found)>,
    device: Device,
}

/// What the trials of a stage came to.
#[derive(Clone, Debug)]
enum Found {
    Measured(Measured),
    /// Why it could not be tried.
    Left(String),
}

/// A stage's memory and time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    /// What the plan says of the memory.
    planned: usize,
    /// Most bytes that the process held; unknown where the system does not say.
    peak: Option<u64>,
    /// Of one step.
    seconds: f64,
    /// Of the whole stage.
    steps: u64,
}

/// Tries every stage of the plans whose models and data are there; `None` when a signal came.
///
/// # Errors
/// If a stage fails, or none can be tried.
pub fn probe(config: &Config, plans: &[Plan]) -> Result<Option<Probed>> {
    let stop = StopRequest::listen()?;
    let local = crate::stages::run::with_local_models(config, &config.stages())?;
    let mut stages = Vec::new();
    for plan in plans {
        let stage = plan.stage;
        let found = match lacking(&local, plan) {
            Some(why) => Found::Left(why),
            None => match measure(&local, plan, &stop).with_context(|| format!("stage {stage}"))? {
                Some(measured) => Found::Measured(measured),
                None => return Ok(None),
            },
        };
        stages.push((stage, found));
    }
    let probed = Probed {
        stages,
        device: config.run.device,
    };
    if probed.measured().next().is_none() {
        bail!("no stage can be probed:\n  {}", probed.left().join("\n  "));
    }
    Ok(Some(probed))
}

/// Both trials of a stage.
fn measure(config: &Config, plan: &Plan, stop: &StopRequest) -> Result<Option<Measured>> {
    let stage = plan.stage;
    terminal::note(format_args!(
        "{stage}: one step on the longest sequences, for the memory"
    ));
    let Some((longest, _)) = try_out(config, stage, Lengths::Longest, stop)? else {
        return Ok(None);
    };
    terminal::note(format_args!(
        "{stage}: some steps on its own records, for the time"
    ));
    let Some((usual, steps)) = try_out(config, stage, Lengths::OwnRecords, stop)? else {
        return Ok(None);
    };
    Ok(Some(Measured {
        planned: plan.most_at_once(),
        peak: longest.peak_bytes.max(usual.peak_bytes),
        seconds: usual.seconds,
        steps,
    }))
}

/// The last step of a trial, and the steps that the stage has in all.
fn try_out(
    config: &Config,
    stage: Stage,
    lengths: Lengths,
    stop: &StopRequest,
) -> Result<Option<(Step, u64)>> {
    let trial = Trial::new(config, stage, lengths)?;
    let Some(step) = process::last_step(&trial, stop)? else {
        return Ok(None);
    };
    Ok(Some((step, trial.steps(&step)?)))
}

/// Why a stage cannot be tried, if so.
fn lacking(config: &Config, plan: &Plan) -> Option<String> {
    let stage = plan.stage;
    let mut models = config.models_read(stage).into_iter();
    let models = models.find(|(_, folder)| !is_model(folder));
    let mut files = config.data_files(stage).into_iter();
    let files = files.find(|(_, file)| !file.exists());
    let model = models.map(|(key, folder)| match Folders(config).made_by(folder) {
        Some(maker) => format!(
            "{stage}.{key} is {}, the model that stage {maker} is yet to make; run `collimate {maker}` first",
            folder.display()
        ),
        None => is_not_there(stage, key, folder),
    });
    let file = files.map(|(key, file)| is_not_there(stage, key, file));
    model.or(file).or_else(|| too_large(config, plan))
}

fn is_not_there(stage: Stage, key: &str, path: &Path) -> String {
    format!("{stage}.{key} is {}, which is not there", path.display())
}

/// A trial of what is known not to fit would take the machine down rather than measure anything.
fn too_large(config: &Config, plan: &Plan) -> Option<String> {
    let planned = plan.most_at_once() as u64;
    let free = available_bytes().filter(|_| config.run.device == Device::Cpu)?;
    (planned > free).then(|| {
        format!(
            "{} takes {} MiB at once, and of this machine's memory only {} MiB are free",
            plan.stage,
            planned >> 20,
            free >> 20
        )
    })
}

impl Probed {
    fn measured(&self) -> impl Iterator<Item = (Stage, &Measured)> {
        self.stages.iter().filter_map(|(stage, found)| match found {
            Found::Measured(measured) => Some((*stage, measured)),
            Found::Left(_) => None,
        })
    }

    /// The reasons why stages were left out.
    fn left(&self) -> Vec<&str> {
        self.stages
            .iter()
            .filter_map(|(_, found)| match found {
                Found::Measured(_) => None,
                Found::Left(why) => Some(why.as_str()),
            })
            .collect()
    }
}
