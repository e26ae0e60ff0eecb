//! Runs stages in order: finished stages are skipped, interrupted ones continue.

use anyhow::{Context as _, Result, ensure};

use super::context::{Context, Finished};
use super::definition::definition;
use super::plan::machine::MemoryBound;
use super::plan::models::with_local_models;
use super::{arithmetic, origin, preflight};
use crate::config::{Config, Stage, Training, TrainingLength};
use crate::ops::backend::Backend;
use crate::ops::{pool, profile};
use crate::terminal::{self, phase::NamedStage};
use crate::train::profile::table;
use crate::train::run_folder::{Existing, RunFolder, StageFolder, StageOutcome};
use crate::train::signal::{Outcome, StopRequest};

/// Runs all stages that the configuration has.
///
/// # Errors
/// The errors of the stages, or a run folder with a run of another configuration.
pub fn run(config: &Config, existing: Existing) -> Result<Outcome> {
    let folder = RunFolder::open(&config.run.folder(), existing)?;
    run_stages(config, &folder, &config.stages(), Existing::Continue)
}

/// Runs one stage.
///
/// # Errors
/// The errors of [`run`].
pub fn run_stage(config: &Config, stage: Stage, existing: Existing) -> Result<Outcome> {
    let folder = RunFolder::open(&config.run.folder(), Existing::Continue)?;
    run_stages(config, &folder, &[stage], existing)
}

fn run_stages(
    config: &Config,
    folder: &RunFolder,
    stages: &[Stage],
    existing: Existing,
) -> Result<Outcome> {
    origin::check_config(config, folder, stages, existing)?;
    folder.write_config(&config.to_toml()?)?;
    let stop = StopRequest::listen()?;
    on_pool(config.run.threads, || {
        run_in_order(config, folder, stages, existing, &stop)
    })
}

fn run_in_order(
    config: &Config,
    folder: &RunFolder,
    stages: &[Stage],
    existing: Existing,
    stop: &StopRequest,
) -> Result<Outcome> {
    let backend = Backend::open(config.run.device, config.run.arithmetic)?;
    let local = with_local_models(config, stages)?;
    check_remaining(&local, folder, stages, existing)?;
    for &stage in stages {
        let files = folder.stage(stage, existing)?;
        let _named = NamedStage::new(stage.name());
        note_unsaved(stage, &files);
        check_can_continue(config, stage, &files)?;
        origin::check_inputs(config, &local, stage, &files)?;
        if is_finished(config, stage, &files)? {
            continue;
        }
        arithmetic::note(stage, &files, backend.products())?;
        let context = Context {
            stage,
            config: &local,
            folder: &files,
            backend: &backend,
            stop,
        };
        match run_profiled(&context)? {
            None => {
                terminal::note(format_args!(
                    "{stage}: stopped and saved; the same command continues"
                ));
                return Ok(Outcome::Stopped);
            }
            Some(finished) => {
                files.mark_done(&finished.done)?;
                terminal::print(format_args!("{}\n", finished.table));
            }
        }
    }
    Ok(Outcome::Finished)
}

/// Runs a stage, and prints its profile with `--profile`.
fn run_profiled(context: &Context) -> Result<Option<Finished>> {
    let stage = context.stage;
    let ran = {
        let _part = profile::part("other");
        let defined = definition(context.config, stage)?;
        defined
            .run(context)
            .with_context(|| format!("stage {stage}"))?
    };
    if profile::is_enabled() {
        terminal::note(table(stage.name(), &profile::take()));
    }
    Ok(ran)
}

/// Checks the stages that are yet to run, and that they fit on this machine, if there are several.
/// A single stage makes the same checks when it starts, except for those of a later PPO.
fn check_remaining(
    config: &Config,
    folder: &RunFolder,
    stages: &[Stage],
    existing: Existing,
) -> Result<()> {
    let done = |stage: Stage| anyhow::Ok(folder.existing_stage(stage).done()?.is_some());
    let mut ahead = Vec::new();
    for &stage in stages {
        if existing == Existing::SetAside || !done(stage)? {
            ahead.push(stage);
        }
    }
    match ahead[..] {
        [] => Ok(()),
        [stage] => preflight::check_sharing(config, stage),
        _ => {
            let plans = preflight::plans(config, &ahead)?;
            preflight::check(config, &plans, MemoryBound::Certain)?;
            preflight::try_user_code(config, &ahead)
        }
    }
}

/// Notes that an earlier process ended before the first checkpoint of the stage.
fn note_unsaved(stage: Stage, files: &StageFolder) {
    if files.has_log() && !files.has_begun() {
        terminal::note(format_args!(
            "{stage}: an earlier process left no checkpoint to continue from; the stage starts \
             over, with the configuration as it is now"
        ));
    }
}

/// Checks that a finished stage that is to be continued, for more steps or for a model that is
/// gone, has a checkpoint.
fn check_can_continue(config: &Config, stage: Stage, files: &StageFolder) -> Result<()> {
    let Some(done) = files.done()? else {
        return Ok(());
    };
    let continues = files.lost_of_final()?.is_some() || wants_more(config, stage, &done);
    ensure!(
        !continues || files.has_checkpoint(),
        "{stage} has finished and left no checkpoint in {} to continue from; put that folder back, \
         or start the stage over: collimate {stage} … --fresh",
        files.checkpoints().display()
    );
    Ok(())
}

/// Whether the stage has finished; if so, the terminal notes it. A stage that is to be continued,
/// or whose final model is missing, is marked unfinished.
fn is_finished(config: &Config, stage: Stage, files: &StageFolder) -> Result<bool> {
    let Some(done) = files.done()? else {
        return Ok(false);
    };
    let lost = files.lost_of_final()?;
    if lost.is_none() && !wants_more(config, stage, &done) {
        terminal::note(format_args!(
            "{stage}: finished after {} steps; its model is {}",
            done.steps,
            files.final_model().display()
        ));
        return Ok(true);
    }
    if let Some(lost) = &lost {
        terminal::note(format_args!(
            "{stage}: finished after {} steps, but {} is gone or cut short; the model is written \
             again from the last checkpoint",
            done.steps,
            lost.display()
        ));
    }
    files.unmark_done()?;
    Ok(false)
}

/// Whether `max_steps` was raised since the stage finished, which only a constant learning rate
/// allows.
fn wants_more(config: &Config, stage: Stage, done: &StageOutcome) -> bool {
    match config.training(stage).map(Training::length) {
        Some(TrainingLength::Steps(steps)) => steps as u64 > done.steps,
        _ => false,
    }
}

/// Runs `work` on a thread of the pool that all CPU work shares, so that it computes instead of
/// waiting for the pool. An existing pool keeps its size.
///
/// # Errors
/// If the pool cannot be started, and the errors of `work`.
fn on_pool<R: Send>(threads: usize, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    pool::say_if_fewer("run.threads", threads);
    pool::start(threads)?;
    rayon::scope(|_| work())
}
