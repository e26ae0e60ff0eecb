//! The environment of every stage, and the model folders that it writes.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::config::{Config, Stage};
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::model::hf_config::HfConfig;
use crate::ops::backend::Backend;
use crate::terminal::Phase;
use crate::train::run_folder::{StageFolder, StageOutcome};
use crate::train::signal::StopRequest;
use crate::train::summary::Summary;

/// The environment of a stage.
pub struct Context<'a> {
    /// The stage.
    pub stage: Stage,
    /// The whole configuration.
    pub config: &'a Config,
    /// The folder of the stage.
    pub folder: &'a StageFolder,
    /// Backend of the models' operations.
    pub backend: &'a Backend,
    /// The request to stop, read between steps.
    pub stop: &'a StopRequest,
}

/// The results of a finished stage besides its model.
pub struct Finished {
    /// Steps done and numbers for later tables.
    pub done: StageOutcome,
    /// The closing table.
    pub table: Summary,
}

impl Context<'_> {
    /// Writes `final/`: model and tokenizer as one Hugging Face folder or, with the folder `base`
    /// of the model that adapters stand on, the adapters as a PEFT folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_final(
        &self,
        model: &Decoder,
        base: Option<&Path>,
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        let dtype = self.config.model.save_dtype;
        let _phase = Phase::begin(match base {
            None => "writing the final model",
            Some(_) => "writing the final adapters",
        });
        self.folder.write_final(|folder| {
            tokenizer.save(folder)?;
            match base {
                None => model.save(folder, dtype)?,
                Some(base) => model.save_adapter(folder, base, dtype)?,
            }
            anyhow::Ok(())
        })
    }

    /// The tokenizer of a model folder, or the one that `[tokenizer]` names instead.
    ///
    /// # Errors
    /// If it cannot be read, or has tokens that the model's embedding lacks.
    pub fn tokenizer_of(&self, folder: &Path) -> Result<Tokenizer> {
        let place = self.config.tokenizer.from.as_deref().unwrap_or(folder);
        let tokenizer = Tokenizer::load(place)
            .with_context(|| format!("the tokenizer in {}", place.display()))?;
        let rows = HfConfig::read(folder)?.decoder.vocab_size;
        check_vocabulary(&tokenizer, place, rows, folder)?;
        Ok(tokenizer)
    }
}

/// Checks that the embedding of the model in `folder` has a row for each token of the tokenizer in
/// `place`.
///
/// # Errors
/// More tokens than `rows`.
pub fn check_vocabulary(
    tokenizer: &Tokenizer,
    place: &Path,
    rows: usize,
    folder: &Path,
) -> Result<()> {
    let tokens = tokenizer.vocab_size();
    ensure!(
        tokens <= rows,
        "the tokenizer in {} has {tokens} tokens, the embedding of {} only {rows} rows; set \
         tokenizer.from to that model's tokenizer, or remove the key to take the one in its folder",
        place.display(),
        folder.display()
    );
    Ok(())
}
