//! Runs stages in order: finished stages are skipped, interrupted ones continue.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kernels::host::pool;

use super::context::{Context, Finished};
use super::definition::definition;
use super::plan::machine::MemoryBound;
use super::plan::models::with_local_models;
use super::{arithmetic, changes, device_memory, origin, preflight};
use crate::config::{Config, Stage, Training, TrainingLength};
use crate::ops::backend::Backend;
use crate::ops::place::lift;
use crate::ops::profile;
use crate::terminal::{self, phase::NamedStage};
use crate::train::checkpoint::Checkpoints;
use crate::train::profile::table;
use crate::train::run_folder::{Existing, RunFolder, StageFolder, StageOutcome};
use crate::train::signal::{Outcome, StopRequest};

/// Runs all stages that the configuration has.
///
/// # Errors
/// The errors of the stages, or a run folder with a run of another configuration.
pub fn run(config: &Config, existing: Existing) -> Result<Outcome> {
    run_stages(config, &config.stages(), Scope::Run, existing)
}

/// Runs one stage.
///
/// # Errors
/// The errors of [`run`].
pub fn run_stage(config: &Config, stage: Stage, existing: Existing) -> Result<Outcome> {
    run_stages(config, &[stage], Scope::Stage, existing)
}

/// The folder that [`Existing::SetAside`] renames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// The run's folder.
    Run,
    /// The stage's folder.
    Stage,
}

fn run_stages(
    config: &Config,
    stages: &[Stage],
    scope: Scope,
    existing: Existing,
) -> Result<Outcome> {
    let folder = RunFolder::open(&config.run.folder())?;
    if existing == Existing::SetAside {
        check_set_aside(config, &folder, stages, scope)?;
    }
    changes::check_config(config, &folder, stages, existing)?;
    let stop = StopRequest::listen()?;
    on_pool(config.run.threads, || {
        let backend = Backend::open(config.run.device, config.run.arithmetic)?;
        let local = with_local_models(config, stages)?;
        check_remaining(&local, &folder, stages, scope, existing)?;
        let (folder, existing) = match (scope, existing) {
            (Scope::Run, Existing::SetAside) => (folder.set_aside()?, Existing::Continue),
            _ => (folder, existing),
        };
        folder.write_config(&config.to_toml()?)?;
        run_in_order([config, &local], &folder, stages, existing, &backend, &stop)
    })
}

/// Runs `stages`; the second configuration names models of the hub by their folders here.
fn run_in_order(
    [config, local]: [&Config; 2],
    folder: &RunFolder,
    stages: &[Stage],
    existing: Existing,
    backend: &Backend,
    stop: &StopRequest,
) -> Result<Outcome> {
    for &stage in stages {
        let files = folder.stage(stage, existing)?;
        let _named = NamedStage::new(stage.name());
        note_unsaved(stage, &files);
        check_can_continue(config, stage, &files)?;
        origin::check_inputs(config, local, stage, &files)?;
        if is_finished(config, stage, &files)? {
            continue;
        }
        arithmetic::note(stage, &files, backend.products())?;
        let context = Context {
            stage,
            config: local,
            folder: &files,
            backend,
            stop,
        };
        match run_profiled(&context)? {
            None => {
                note_stopped(stage, &files)?;
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

/// Notes after which step a signal stopped the stage.
fn note_stopped(stage: Stage, files: &StageFolder) -> Result<()> {
    let unit = match stage {
        Stage::Ppo => "iteration",
        _ => "step",
    };
    let kept = Checkpoints::open(&files.checkpoints())?.all()?;
    let saved = kept
        .last()
        .map(|last| format!(" after {unit} {}", last.step));
    terminal::note(format_args!(
        "{stage}: stopped and saved{}; the same command (without --fresh) continues",
        saved.unwrap_or_default()
    ));
    Ok(())
}

/// Runs a stage, and prints its profile with `--profile`.
fn run_profiled(context: &Context) -> Result<Option<Finished>> {
    let stage = context.stage;
    if let Backend::Gpu(gpu, _) = context.backend {
        lift(gpu.restart_peak())?;
        if profile::is_enabled() {
            profile::wait_for(gpu);
        }
    }
    let ran = {
        let _part = profile::part("other");
        let defined = definition(context.config, stage)?;
        defined
            .run(context)
            .map_err(|error| device_memory::explain(error, context.config, stage))
            .with_context(|| format!("stage {stage}"))?
    };
    if profile::is_enabled() {
        terminal::note(table(stage.name(), &profile::take()));
    }
    Ok(ran)
}

/// Checks the stages that are yet to run, before a folder is set aside: if there are several, that
/// they can begin and fit on this machine. A single stage makes the same checks when it starts,
/// except for those of a later PPO; they are made here only if its folder would have been renamed
/// by then.
fn check_remaining(
    config: &Config,
    folder: &RunFolder,
    stages: &[Stage],
    scope: Scope,
    existing: Existing,
) -> Result<()> {
    let mut ahead = Vec::new();
    for &stage in stages {
        if existing == Existing::SetAside || folder.existing_stage(stage).done()?.is_none() {
            ahead.push(stage);
        }
    }
    let run = match scope {
        Scope::Run => existing,
        Scope::Stage => Existing::Continue,
    };
    match ahead[..] {
        [] => Ok(()),
        [stage] if run == Existing::Continue => {
            let renamed = existing == Existing::SetAside;
            if renamed && folder.existing_stage(stage).path().exists() {
                preflight::check_stages(config, &ahead, run)?;
            }
            if config.run.device.is_gpu() {
                preflight::check_gpu(config, stage, existing)?;
            }
            preflight::check_sharing(config, stage, existing)
        }
        _ => {
            let plans = preflight::plans(config, &ahead, run)?;
            preflight::check(config, &plans, MemoryBound::Certain, run)?;
            preflight::try_user_code(config, &ahead, run)
        }
    }
}

/// Checks that `stages` read no file of the folder that would be set aside, other than the models
/// that they make again.
fn check_set_aside(
    config: &Config,
    folder: &RunFolder,
    stages: &[Stage],
    scope: Scope,
) -> Result<()> {
    for &stage in stages {
        let (root, makers) = match scope {
            Scope::Run => (config.run.folder(), stages),
            Scope::Stage => (folder.existing_stage(stage).path().to_owned(), &[][..]),
        };
        let inputs = origin::input_paths(config, stage);
        for (key, path) in inputs.into_iter().filter(|_| root.exists()) {
            let makes = |&maker: &Stage| resolved(&config.run.final_model(maker)) == resolved(path);
            let advice = match scope {
                Scope::Run => format!(
                    "start the stages over one by one, as in collimate {stage} … --fresh, or \
                     choose another run.name"
                ),
                Scope::Stage => "copy it to another folder and name that".to_owned(),
            };
            ensure!(
                makers.iter().any(makes) || !resolved(path).starts_with(resolved(&root)),
                "--fresh would rename {} and with it {key} = \"{}\", which this command reads and \
                 does not make; {advice}",
                root.display(),
                path.display()
            );
        }
    }
    Ok(())
}

/// The absolute path without links and `..`, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let absolute = || std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.canonicalize().unwrap_or_else(|_| absolute())
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
    if let Some(fewer) = pool::start(threads)? {
        terminal::note(format_args!("run.threads = {fewer}"));
    }
    rayon::scope(|_| work())
}
