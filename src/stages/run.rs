//! Runs stages in order: finished ones are passed over, interrupted ones continue.

use anyhow::{Context as _, Result};

use super::context::{Context, Finished};
use super::{arithmetic, dpo, origin, preflight, pretrain, reward, sft};
use crate::config::{Config, Length, Stage, Training};
use crate::model::hub;
use crate::ops::{device, profile};
use crate::train::profile::table;
use crate::train::run_folder::{Done, Existing, RunFolder, StageFolder};
use crate::train::signal::{Outcome, StopRequest};

/// Stack of a pool thread: a backward pass recurses as deep as the graph.
const STACK_BYTES: usize = 64 << 20;

/// Runs all stages that the configuration has.
///
/// # Errors
/// Those of a stage, or if the run folder holds a run of another configuration.
pub fn run(config: &Config, existing: Existing) -> Result<Outcome> {
    let folder = RunFolder::open(&config.run.folder(), existing)?;
    run_stages(config, &folder, &config.stages(), Existing::Continue)
}

/// Runs one stage.
///
/// # Errors
/// As [`run`].
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
    let starts_over = |stage: &Stage| existing == Existing::SetAside && stages.contains(stage);
    let kept: Vec<Stage> = Stage::ALL
        .into_iter()
        .filter(|stage| !starts_over(stage))
        .collect();
    origin::check_config(config, folder, &kept)?;
    folder.write_config(&config.to_toml()?)?;
    let stop = StopRequest::listen()?;
    on_pool(config.run.threads, || {
        arithmetic::of(config.run.arithmetic)
            .during(|| run_in_order(config, folder, stages, existing, &stop))
    })
}

fn run_in_order(
    config: &Config,
    folder: &RunFolder,
    stages: &[Stage],
    existing: Existing,
    stop: &StopRequest,
) -> Result<Outcome> {
    let device = device::open(config.run.device)?;
    let local = with_local_models(config, stages)?;
    check_before_the_first(&local, folder, stages, existing)?;
    for &stage in stages {
        let files = folder.stage(stage, existing)?;
        origin::check_inputs(config, &local, stage, &files)?;
        if is_finished(config, stage, &files)? {
            continue;
        }
        arithmetic::note(stage, &files)?;
        let context = Context {
            config: &local,
            folder: &files,
            device: &device,
            stop,
        };
        let ran = {
            let _part = profile::part("other");
            run_one(&context, stage).with_context(|| format!("stage {}", stage.name()))?
        };
        if profile::is_enabled() {
            eprintln!("{}", table(stage.name(), &profile::take()));
        }
        match ran {
            None => {
                eprintln!(
                    "{}: stopped and saved; the same command continues",
                    stage.name()
                );
                return Ok(Outcome::Stopped);
            }
            Some(finished) => {
                files.mark_done(&finished.done)?;
                println!("{}\n", finished.table);
            }
        }
    }
    Ok(Outcome::Finished)
}

/// Checks the stages that are yet to run, if there are several: a single one makes the same checks itself, at once.
fn check_before_the_first(
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
    match ahead.len() {
        0 | 1 => Ok(()),
        _ => preflight::check(config, &ahead),
    }
}

/// Whether nothing is left to do of a stage, which is said then. One that is to go on is no longer marked as done.
fn is_finished(config: &Config, stage: Stage, files: &StageFolder) -> Result<bool> {
    let Some(done) = files.done()? else {
        return Ok(false);
    };
    if wants_more(config, stage, &done) {
        files.unmark_done()?;
        return Ok(false);
    }
    eprintln!(
        "{}: finished after {} steps; its model is {}",
        stage.name(),
        done.steps,
        files.final_model().display()
    );
    Ok(true)
}

/// The configuration with models of the hub replaced by the folders that they were fetched to.
pub(super) fn with_local_models(config: &Config, stages: &[Stage]) -> Result<Config> {
    let mut config = config.clone();
    let made = config.run.folder();
    for folder in config.model_folders_mut(stages) {
        if !folder.starts_with(&made) {
            *folder = hub::local(folder)?;
        }
    }
    Ok(config)
}

/// Whether `max_steps` was raised since the stage finished (only a constant learning rate lets it be).
fn wants_more(config: &Config, stage: Stage, done: &Done) -> bool {
    match config.training(stage).map(Training::length) {
        Some(Length::Steps(steps)) => steps as u64 > done.steps,
        _ => false,
    }
}

fn run_one(context: &Context, stage: Stage) -> Result<Option<Finished>> {
    let config = context.config;
    let missing = || format!("the configuration has no [{}] table", stage.name());
    match stage {
        Stage::Pretrain => {
            pretrain::pretrain(context, config.pretrain.as_ref().with_context(missing)?)
        }
        Stage::Sft => sft::sft(context, config.sft.as_ref().with_context(missing)?),
        Stage::Dpo => dpo::dpo(context, config.dpo.as_ref().with_context(missing)?),
        Stage::Reward => reward::reward(
            context,
            config.reward.as_ref().with_context(missing)?,
            stage,
        ),
        Stage::Judge => {
            reward::reward(context, config.judge.as_ref().with_context(missing)?, stage)
        }
        Stage::Ppo => super::ppo::ppo(context, config.ppo.as_ref().with_context(missing)?),
    }
}

/// Runs `work` on a thread of the pool that all CPU work shares, so that it computes rather than waits for those that do. A pool
/// that exists already keeps its size.
fn on_pool<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let count = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .stack_size(STACK_BYTES);
    pool.build_global().ok();
    rayon::scope(|_| work())
}
