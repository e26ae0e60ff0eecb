//! Checks of a whole run before its first stage.
//!
//! A stage refuses a model, a tokenizer or a record that does not fit when it begins. For a later
//! stage that may be hours after the start of the run, so the same checks are made here for every
//! stage, on the models' sizes and on the first records of each data file. A model that an earlier
//! stage is yet to make has the sizes of its start. A data file that does not exist yet is left to
//! its stage.

pub(super) mod models;
pub(super) mod records;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::definition::definition;
use super::plan::models::{RunModels, is_model};
use super::pretrain::bpe_training;
use crate::config::{Config, ModelStart, Stage};
use crate::data::tokenizer::Tokenizer;
use records::RecordReader;

/// Checks `stages` in order, without loading weights.
///
/// # Errors
/// The error of the first stage that cannot begin.
pub fn check(config: &Config, stages: &[Stage]) -> Result<()> {
    let run = RunModels(config);
    stages
        .iter()
        .try_for_each(|&stage| check_stage(run, stage).with_context(|| format!("stage {stage}")))
}

fn check_stage(run: RunModels, stage: Stage) -> Result<()> {
    let defined = definition(run.0, stage)?;
    let Some(folder) = tokenizer_folder(run, stage) else {
        defined.check_models(run, stage)?;
        return defined.check_records(&RecordReader {
            stage,
            tokenizer: &byte_tokenizer(run.0)?,
            context: None,
        });
    };
    let named = || format!("the tokenizer in {}", folder.display());
    let tokenizer = Tokenizer::load(&folder).with_context(named)?;
    models::check_vocabulary(run, stage, &tokenizer, &folder)?;
    defined.check_models(run, stage)?;
    let decoder = run.from(stage).map(|from| run.decoder(from));
    let decoder = decoder.transpose()?;
    defined.check_records(&RecordReader {
        stage,
        tokenizer: &tokenizer,
        context: decoder.map(|decoder| decoder.max_position_embeddings),
    })
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

/// A tokenizer with one token for each byte, in place of the one that pretraining will train: it
/// refuses the same records.
fn byte_tokenizer(config: &Config) -> Result<Tokenizer> {
    let mut training = bpe_training(&config.tokenizer);
    training.vocab_size = 256 + training.special_tokens.len();
    Ok(Tokenizer::train_bpe(&["a"], &training)?)
}
