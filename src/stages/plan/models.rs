//! The models of a run, described before the stages that make them have run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::config::{Config, ModelStart, Stage, StageTable};
use crate::data::tokenizer::Tokenizer;
use crate::model::config::{DecoderConfig, Head};
use crate::model::hf_config::HfConfig;
use crate::model::hub;
use crate::model::lora::Lora;
use crate::roles::{AdapterDescription, ModelDescription, Origin, is_model};
use crate::stages::architecture::describe;
use crate::train::run_folder::Existing;

/// Describes the model folders of a run: by their files if they exist, else by the table of the
/// stage that is yet to make them. If the run is to be set aside, its stages are to make them all.
#[derive(Clone, Copy)]
pub struct RunModels<'a>(pub &'a Config, pub Existing);

impl<'a> RunModels<'a> {
    /// The sizes of the model in `folder`, or of the model that its stage starts from.
    ///
    /// # Errors
    /// If a `config.json` cannot be read, or no stage makes the folder.
    pub fn decoder(self, folder: &Path) -> Result<DecoderConfig> {
        match self.origin(folder) {
            Some(existing) => Ok(HfConfig::read(&existing)?.decoder),
            None => self.scratch(),
        }
    }

    /// Describes a model folder with its head and adapters.
    ///
    /// # Errors
    /// The errors of [`Self::decoder`] and [`Self::adapters`], and of
    /// [`ModelDescription::read`].
    pub fn describe(self, folder: &Path) -> Result<ModelDescription> {
        let Some(stage) = self.to_be_made_by(folder) else {
            return Ok(ModelDescription::read(folder)?);
        };
        let mut decoder = self.decoder(folder)?;
        let from = self.from(stage).map(|from| self.describe(from));
        let from = from.transpose()?;
        let lora = from
            .as_ref()
            .map(|from| self.adapters_on(from, stage, &decoder));
        let lora = lora.transpose()?.flatten();
        let is_scorer = matches!(stage, Stage::Reward | Stage::Judge);
        decoder.head = match is_scorer {
            true => Head::Score,
            false => Head::LanguageModel,
        };
        let frozen_layers = match &lora {
            Some(lora) => lora.lowest_layer(),
            None => {
                let keys = self.0.table(stage).and_then(StageTable::examples);
                keys.map(|keys| keys.trainable.freeze_layers)
            }
        };
        let adapter = lora
            .zip(from.as_ref())
            .map(|(lora, from)| AdapterDescription {
                lora,
                base: from.base().to_owned(),
                has_score: is_scorer,
            });
        Ok(ModelDescription {
            folder: folder.to_owned(),
            decoder,
            adapter,
            tokenizer: self.origin(folder),
            origin: Origin::Stage {
                stage,
                from: from.map(Box::new),
                frozen_layers: frozen_layers.unwrap_or(0),
            },
        })
    }

    /// The adapters that a stage trains on a model of these sizes, if it trains adapters: new ones,
    /// or those of the model that it starts from.
    ///
    /// # Errors
    /// If the model cannot have them, or their settings differ from those of the stage's table.
    pub fn adapters(self, stage: Stage, decoder: &DecoderConfig) -> Result<Option<Lora>> {
        match self.from(stage) {
            Some(from) => self.adapters_on(&self.describe(from)?, stage, decoder),
            None => Ok(None),
        }
    }

    fn adapters_on(
        self,
        from: &ModelDescription,
        stage: Stage,
        decoder: &DecoderConfig,
    ) -> Result<Option<Lora>> {
        let Some(table) = self.0.table(stage).and_then(StageTable::lora) else {
            return Ok(None);
        };
        let found = from.adapter.as_ref().map(|adapter| &adapter.lora);
        let name = format!("{stage}.lora");
        let lora = Lora::trained(found, table, &name, decoder, &from.folder)?;
        Ok(Some(lora))
    }

    /// The sizes that `[model]` gives. Before a tokenizer is trained its vocabulary is the
    /// configured one.
    ///
    /// # Errors
    /// If the table has no sizes, or the tokenizer cannot be read.
    pub fn scratch(self) -> Result<DecoderConfig> {
        let vocabulary = match &self.0.tokenizer.from {
            Some(folder) => Tokenizer::load(folder)?.vocab_size(),
            None => self.0.tokenizer.vocab_size,
        };
        match &self.0.model.start {
            Some(ModelStart::Scratch(sizes)) => describe(sizes, vocabulary),
            Some(ModelStart::Folder(folder)) => self.decoder(folder),
            None => bail!("[model] has neither `from` nor sizes; pretraining needs one of them"),
        }
    }

    /// The tokenizer of the stage that reads `folder`, unless it is yet to be trained.
    ///
    /// # Errors
    /// If the tokenizer cannot be read.
    pub fn tokenizer(self, folder: &Path) -> Result<Option<Tokenizer>> {
        let named = self.0.tokenizer.from.clone();
        let origin = named.or_else(|| self.origin(folder));
        let existing = origin.filter(|origin| origin.join("tokenizer.json").is_file());
        let load = |folder: PathBuf| {
            let what = || format!("the tokenizer in {}", folder.display());
            Tokenizer::load(&folder).with_context(what)
        };
        existing.map(load).transpose()
    }

    /// The folder itself if it exists or no stage of the run makes it, else the origin of the
    /// folder that its stage starts from; `None` if it is made from scratch.
    pub fn origin(self, folder: &Path) -> Option<PathBuf> {
        let Some(stage) = self.to_be_made_by(folder) else {
            return Some(folder.to_owned());
        };
        match (stage, &self.0.model.start) {
            (Stage::Pretrain, Some(ModelStart::Folder(start))) => self.origin(start),
            (Stage::Pretrain, _) => None,
            _ => self.origin(self.from(stage)?),
        }
    }

    /// The folder of the model that a stage after pretraining starts from.
    pub fn from(self, stage: Stage) -> Option<&'a Path> {
        self.0.table(stage)?.start()
    }

    /// The stage that is yet to make the model in this folder.
    fn to_be_made_by(self, folder: &Path) -> Option<Stage> {
        let keeps = self.1 == Existing::Continue && is_model(folder);
        self.made_by(folder).filter(|_| !keeps)
    }

    /// The stage whose final model the folder holds.
    pub fn made_by(self, folder: &Path) -> Option<Stage> {
        let makes = |stage: &Stage| self.0.run.final_model(*stage) == folder;
        self.0.stages().into_iter().find(makes)
    }
}

/// The configuration with models of the hub replaced by the folders that they were fetched to.
///
/// # Errors
/// A model that cannot be fetched.
pub fn with_local_models(config: &Config, stages: &[Stage]) -> Result<Config> {
    let mut config = config.clone();
    let run = config.run.folder();
    for folder in config.model_folders_mut(stages) {
        if !folder.starts_with(&run) {
            *folder = hub::local(folder)?;
        }
    }
    Ok(config)
}
