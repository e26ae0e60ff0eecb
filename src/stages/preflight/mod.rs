//! Checks of a whole run before its first stage.
//!
//! A stage refuses a model, a tokenizer or a record that does not fit it when it begins. For a later stage of a run that may be
//! hours after the start, so the same checks are made here for every stage, on the models' sizes and on the first records of each
//! data file. A model that an earlier stage is yet to make has the sizes of its start; a data file that does not exist yet is left to
//! its stage.

pub(super) mod models;
pub(super) mod records;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::definition::definition;
use super::plan::models::{Folders, is_model};
use super::pretrain::bpe_training;
use crate::config::{Config, ModelStart, Stage};
use crate::data::tokenizer::Tokenizer;
use records::Reader;

/// Checks `stages`, in their order, without loading weights.
///
/// # Errors
/// The error with which the first stage that cannot begin would end.
pub fn check(config: &Config, stages: &[Stage]) -> Result<()> {
    let folders = Folders(config);
    stages.iter().try_for_each(|&stage| {
        check_stage(folders, stage).with_context(|| format!("stage {stage}"))
    })
}

fn check_stage(folders: Folders, stage: Stage) -> Result<()> {
    let defined = definition(folders.0, stage)?;
    let Some(place) = tokenizer_place(folders, stage) else {
        defined.check_models(folders, stage)?;
        return defined.check_records(&Reader {
            stage,
            tokenizer: &byte_tokenizer(folders.0)?,
            context: None,
        });
    };
    let named = || format!("the tokenizer in {}", place.display());
    let tokenizer = Tokenizer::load(&place).with_context(named)?;
    models::check_vocabulary(folders, stage, &tokenizer, &place)?;
    defined.check_models(folders, stage)?;
    let decoder = folders.from(stage).map(|from| folders.decoder(from));
    let decoder = decoder.transpose()?;
    defined.check_records(&Reader {
        stage,
        tokenizer: &tokenizer,
        context: decoder.map(|decoder| decoder.max_position_embeddings),
    })
}

/// The folder of the tokenizer that `stage` will have; `None` where pretraining is yet to train it, or the model folder is not there.
fn tokenizer_place(folders: Folders, stage: Stage) -> Option<PathBuf> {
    let config = folders.0;
    if let Some(named) = &config.tokenizer.from {
        return Some(named.clone());
    }
    let start = config.model.start.as_ref().and_then(ModelStart::folder);
    let origin = folders.origin(folders.from(stage).or(start)?)?;
    is_model(&origin).then_some(origin)
}

/// A tokenizer of one token a byte: it stands in for the one that pretraining will train, and refuses the same records.
fn byte_tokenizer(config: &Config) -> Result<Tokenizer> {
    let mut training = bpe_training(&config.tokenizer);
    training.vocab_size = 256 + training.special_tokens.len();
    Ok(Tokenizer::train_bpe(&["a"], &training)?)
}
