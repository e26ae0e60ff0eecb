//! Runs stages in order: finished ones are passed over, interrupted ones continue.

use anyhow::{Context as _, Result, bail};
use candle_core::Device;

use super::context::{Context, Finished};
use super::{pretrain, reward, sft};
use crate::config::diff::{Effect, diff};
use crate::config::{self, Config, Length, Stage, Training};
use crate::train::run_folder::{Done, Existing, RunFolder};
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
    check_changes(config, folder, stages, existing)?;
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
    let device = device(&config.run.device)?;
    for &stage in stages {
        let files = folder.stage(stage, existing)?;
        if let Some(done) = files.done()? {
            if !wants_more(config, stage, &done) {
                eprintln!(
                    "{}: finished after {} steps; its model is {}",
                    stage.name(),
                    done.steps,
                    files.final_model().display()
                );
                continue;
            }
            files.unmark_done()?;
        }
        let context = Context {
            config,
            folder: &files,
            device: &device,
            stop,
        };
        match run_one(&context, stage).with_context(|| format!("stage {}", stage.name()))? {
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

/// Refuses to continue a stage under a configuration that would have led elsewhere.
fn check_changes(
    config: &Config,
    folder: &RunFolder,
    stages: &[Stage],
    existing: Existing,
) -> Result<()> {
    if !folder.config().exists() {
        return Ok(());
    }
    let old = Config::load(&folder.config(), &[]).with_context(|| {
        format!(
            "the configuration that {} was begun with",
            folder.path().display()
        )
    })?;
    let changes = diff(&old, config)?;
    let begun: Vec<Stage> = Stage::ALL
        .into_iter()
        .filter(|&stage| !(existing == Existing::SetAside && stages.contains(&stage)))
        .filter(|stage| {
            folder
                .path()
                .join(stage.name())
                .join("metrics.jsonl")
                .exists()
        })
        .collect();
    let mut refused = Vec::new();
    for change in &changes {
        let line = format!(
            "{}: {} → {}",
            change.key,
            shown(&change.old),
            shown(&change.new)
        );
        let stage = begun.iter().find(|&&stage| change.concerns(stage));
        match (change.effect, stage) {
            (Effect::ChangesResult, Some(stage)) => {
                refused.push(format!("{line} (stage {} has begun)", stage.name()))
            }
            _ => eprintln!("changed since the run began: {line}"),
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    bail!(
        "{} holds a run that was begun with other values:\n  {}\nput them back to continue it, choose another run.name, or start over with --fresh",
        folder.path().display(),
        refused.join("\n  ")
    )
}

fn shown(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or("unset")
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

fn device(device: &config::Device) -> Result<Device> {
    match device {
        config::Device::Cpu => Ok(Device::Cpu),
        config::Device::Cuda(ordinal) => Device::new_cuda(*ordinal).with_context(|| {
            format!("run.device = \"cuda:{ordinal}\"; was collimate built with --features cuda?")
        }),
    }
}
