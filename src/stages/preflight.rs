//! The plans of a run's stages, and the checks before its first stage.
//!
//! A stage refuses a model, a tokenizer or a record that does not fit when it begins. For a later
//! stage that may be hours after the start of the run, so the same checks are made here for every
//! stage, on the models' sizes and on the first records of each data file. A model that an earlier
//! stage is yet to make has the sizes of its start. A data file that does not exist yet is left to
//! its stage.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use kernels::device::attention;

use super::context::check_vocabulary;
use super::definition::definition;
use super::first_records::RecordReader;
use super::plan::StagePlan;
use super::plan::machine::{self, MemoryBound};
use super::plan::models::{RunModels, with_local_models};
use super::tokenizer::byte_tokenizer;
use crate::config::{Config, ModelStart, Ppo, Share, Stage};
use crate::data::tokenizer::Tokenizer;
use crate::model::attention_of;
use crate::model::config::DecoderConfig;
use crate::roles::{PpoModels, RoleLayout, is_model};
use crate::terminal::Phase;
use crate::train::run_folder::Existing;

/// The plans of `stages`, in their order. `run` says whether the run's folder is set aside first.
///
/// # Errors
/// If a model's configuration or the prompts cannot be read, or a stage would refuse its models.
pub fn plans(config: &Config, stages: &[Stage], run: Existing) -> Result<Vec<StagePlan>> {
    let config = with_local_models(config, stages)?;
    let models = RunModels(&config, run);
    let plan = |&stage: &Stage| plan_of(models, stage).with_context(|| format!("stage {stage}"));
    stages.iter().map(plan).collect()
}

fn plan_of(models: RunModels, stage: Stage) -> Result<StagePlan> {
    let config = models.0;
    let mut plan = definition(config, stage)?.plan(models, stage)?;
    if config.run.device.is_gpu() {
        let note = "memory of the GPU; not counted: the driver's context and the libraries, about \
                    0.5 GiB";
        plan.notes.push(note.to_owned());
    }
    Ok(plan)
}

/// Checks that the planned stages can begin, and that they fit on this machine. No weights are
/// loaded.
///
/// # Errors
/// The error of the first stage that cannot begin, or that does not fit.
pub fn check(
    config: &Config,
    plans: &[StagePlan],
    bound: MemoryBound,
    run: Existing,
) -> Result<()> {
    let stages: Vec<Stage> = plans.iter().map(|plan| plan.stage).collect();
    check_stages(config, &stages, run)?;
    machine::check(config, plans, bound, run)
}

/// Checks the models of `stages` and the first records of their data files.
///
/// # Errors
/// The error of the first stage that cannot begin.
pub fn check_stages(config: &Config, stages: &[Stage], run: Existing) -> Result<()> {
    let local = with_local_models(config, stages)?;
    check_heads(&local, stages, run)?;
    for &stage in stages {
        check_stage(RunModels(&local, run), stage).with_context(|| format!("stage {stage}"))?;
    }
    Ok(())
}

/// Calls the reward programs and endpoints of `stages` once, so that a later stage does not find
/// out that one is broken.
///
/// # Errors
/// A program or endpoint that does not answer as it should.
pub fn try_user_code(config: &Config, stages: &[Stage], run: Existing) -> Result<()> {
    let local = with_local_models(config, stages)?;
    for &stage in stages {
        let defined = definition(&local, stage)?;
        if !defined.calls_user_code() {
            continue;
        }
        let _phase = Phase::begin("trying the reward programs and endpoints on one prompt");
        let tried = with_reader(RunModels(&local, run), stage, |reader| {
            defined.try_user_code(reader)
        });
        tried.map_err(|error| {
            anyhow!(
                "stage {stage}, tried on one prompt before the first stage: {error:#}\nif it needs \
                 what an earlier stage makes, run the stages one by one (`collimate {} …`, then \
                 the next)",
                stages[0]
            )
        })?;
    }
    Ok(())
}

/// Checks, before a stage that runs alone, that a GPU has kernels for its models, and memory for
/// their weights, gradients and moments. A stage that cannot be planned reports its error itself.
///
/// # Errors
/// The head or the memory, with the keys.
pub fn check_gpu(config: &Config, stage: Stage, run: Existing) -> Result<()> {
    check_heads(config, &[stage], run)?;
    match plan_of(RunModels(config, run), stage) {
        Ok(plan) => machine::check_memory(config, &plan, MemoryBound::Certain),
        Err(_) => Ok(()),
    }
}

/// Checks that a GPU has kernels for the attention heads of all models that `stages` read or make.
/// A model that cannot be described yet is left to its stage.
///
/// # Errors
/// The first model that it has none for, with the key.
fn check_heads(config: &Config, stages: &[Stage], run: Existing) -> Result<()> {
    if !config.run.device.is_gpu() {
        return Ok(());
    }
    let models = RunModels(config, run);
    let scratch = stages.contains(&Stage::Pretrain).then(|| models.scratch());
    if let Some(Ok(decoder)) = scratch {
        check_head(&decoder).context("[model]")?;
    }
    for &stage in stages {
        for (key, folder) in config.models_read(stage) {
            let Ok(model) = models.describe(folder) else {
                continue;
            };
            let file = || format!("stage {stage}: {key} = {}/config.json", folder.display());
            check_head(&model.decoder).with_context(file)?;
        }
    }
    Ok(())
}

fn check_head(decoder: &DecoderConfig) -> Result<()> {
    attention::check(&attention_of(decoder, 0)).map_err(|error| {
        anyhow!(
            "head_dim (or hidden_size / num_attention_heads) is {}: {error}; run this model on \
             the CPU (run.device = \"cpu\")",
            decoder.head_dim
        )
    })
}

fn check_stage(run: RunModels, stage: Stage) -> Result<()> {
    let defined = definition(run.0, stage)?;
    with_reader(run, stage, |reader| {
        defined.check_models(run, stage)?;
        defined.check_records(reader)
    })
}

/// Calls `check` with a reader of the records of `stage`.
fn with_reader(
    run: RunModels,
    stage: Stage,
    check: impl FnOnce(&RecordReader) -> Result<()>,
) -> Result<()> {
    let Some(folder) = tokenizer_folder(run, stage) else {
        return check(&RecordReader {
            stage,
            tokenizer: &byte_tokenizer(&run.0.tokenizer)?,
            context: None,
        });
    };
    let named = || format!("the tokenizer in {}", folder.display());
    let tokenizer = Tokenizer::load(&folder).with_context(named)?;
    let from = run.from(stage);
    let decoder = from.map(|from| run.decoder(from)).transpose()?;
    if let (Some(from), Some(decoder)) = (from, &decoder) {
        check_vocabulary(&tokenizer, &folder, decoder.vocab_size, from)?;
    }
    check(&RecordReader {
        stage,
        tokenizer: &tokenizer,
        context: decoder.map(|decoder| decoder.max_position_embeddings),
    })
}

/// Checks, before `stage` alone trains a model that `[ppo]` reads, that PPO's roles will be able to
/// share weights. Nothing is checked while another of these models cannot be described yet, or if
/// the stage has made its model and does not start over.
///
/// # Errors
/// The errors of [`RoleLayout::new`].
pub fn check_sharing(config: &Config, stage: Stage, existing: Existing) -> Result<()> {
    let shares = |ppo: &&Ppo| stage != Stage::Ppo && ppo.sharing.share != Share::None;
    let (models, made) = (RunModels(config, existing), config.run.final_model(stage));
    let Some(ppo) = config.ppo.as_ref().filter(shares) else {
        return Ok(());
    };
    let read = config.models_read(Stage::Ppo);
    let keeps = existing == Existing::Continue && is_model(&made);
    if keeps || !read.iter().any(|(_, folder)| *folder == made) {
        return Ok(());
    }
    match PpoModels::describe(ppo, |folder| models.describe(folder)) {
        Ok(described) => {
            let layout = RoleLayout::new(ppo, described);
            layout.map(drop).context("stage ppo")
        }
        Err(_) => Ok(()),
    }
}

/// The folder of the tokenizer that `stage` will have; `None` if pretraining is yet to train it, or
/// the model folder does not exist.
fn tokenizer_folder(run: RunModels, stage: Stage) -> Option<PathBuf> {
    let config = run.0;
    if let Some(named) = &config.tokenizer.from {
        return Some(named.clone());
    }
    let start = config.model.start.as_ref().and_then(ModelStart::folder);
    let origin = run.origin(run.from(stage).or(start)?)?;
    is_model(&origin).then_some(origin)
}
