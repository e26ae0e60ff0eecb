//! A model's folder → its sizes, also where an earlier stage is yet to make it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::config::{Config, Lora, ModelStart, Stage};
use crate::data::tokenizer::Tokenizer;
use crate::model::config::{DecoderConfig, Head};
use crate::model::hf_config::HfConfig;
use crate::model::hf_config::adapter::{ADAPTER_CONFIG, AdapterConfig};
use crate::model::lora;
use crate::model::lora::folder::AdapterFolder;
use crate::stages::adapters::asked;
use crate::stages::architecture::describe;

use super::roles::Start;

/// The file of a model's sizes.
const CONFIG: &str = "config.json";

/// The models of a run.
#[derive(Clone, Copy)]
pub struct Folders<'a>(pub &'a Config);

impl<'a> Folders<'a> {
    /// The sizes of the model in `folder`, or of what the stage that makes it starts from.
    ///
    /// # Errors
    /// If a `config.json` cannot be read, or no stage makes the folder.
    pub fn decoder(self, folder: &Path) -> Result<DecoderConfig> {
        match self.origin(folder) {
            Some(existing) => Ok(HfConfig::read(&existing)?.decoder),
            None => self.scratch(),
        }
    }

    /// What a role starts from, under this head: a model, with its adapters if it is, or will be, a PEFT folder.
    ///
    /// # Errors
    /// As [`Self::decoder`], and if the folder's adapters do not fit its base.
    pub fn start(self, folder: &Path, head: Head) -> Result<Start> {
        let mut decoder = self.decoder(folder)?;
        decoder.head = head;
        let adapter = match self.to_be_made_by(folder) {
            Some(stage) => self.adapters(stage, &decoder)?,
            None => adapter_in(folder)?,
        };
        Ok(Start { decoder, adapter })
    }

    /// The adapters that a stage trains on a model of these sizes, if it trains adapters: new ones, or those of the folder that it
    /// starts from, or that an earlier stage will leave there.
    ///
    /// # Errors
    /// If the model cannot have them, or those of the folder differ from what the stage's table asks for.
    pub fn adapters(self, stage: Stage, decoder: &DecoderConfig) -> Result<Option<lora::Lora>> {
        let Some(table) = self.lora(stage) else {
            return Ok(None);
        };
        let (asked, key) = (asked(table), || format!("{stage}.lora"));
        let from = self
            .from(stage)
            .context("a stage with adapters starts from no folder")?;
        let found = match self.to_be_made_by(from) {
            Some(earlier) => self.adapters(earlier, decoder)?,
            None => adapter_in(from)?,
        };
        match found {
            None => Ok(Some(asked.fresh().resolve(decoder).with_context(key)?)),
            Some(found) => {
                asked.check(&key(), &found, decoder, from)?;
                Ok(Some(found))
            }
        }
    }

    /// The adapters that a stage will leave.
    pub(super) fn lora(self, stage: Stage) -> Option<&'a Lora> {
        self.0.table(stage)?.lora()
    }

    /// The sizes that `[model]` gives; before a tokenizer is trained its vocabulary is the one that is asked for.
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
            None => bail!("[model] says neither `from` nor sizes; pretraining needs one of them"),
        }
    }

    /// The tokenizer that the stage which reads `folder` will have, unless it is yet to be trained.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn tokenizer(self, folder: &Path) -> Result<Option<Tokenizer>> {
        let origin = self
            .0
            .tokenizer
            .from
            .clone()
            .or_else(|| self.origin(folder));
        let there = origin.filter(|place| place.join("tokenizer.json").is_file());
        there
            .map(|place| {
                let what = || format!("the tokenizer in {}", place.display());
                Tokenizer::load(&place).with_context(what)
            })
            .transpose()
    }

    /// The folder itself if it is there or no stage of the run makes it, or else that of what its stage starts from; `None` where
    /// this is made from scratch.
    pub fn origin(self, folder: &Path) -> Option<PathBuf> {
        let Some(stage) = self.to_be_made_by(folder) else {
            return Some(folder.to_owned());
        };
        let config = self.0;
        match stage {
            Stage::Pretrain => match &config.model.start {
                Some(ModelStart::Folder(start)) => self.origin(start),
                _ => None,
            },
            _ => self.origin(self.from(stage)?),
        }
    }

    /// The folder of the model that a stage after pretraining starts from.
    pub fn from(self, stage: Stage) -> Option<&'a Path> {
        self.0.table(stage)?.start()
    }

    /// The stage that is yet to make the model in the folder.
    pub(super) fn to_be_made_by(self, folder: &Path) -> Option<Stage> {
        self.made_by(folder).filter(|_| !is_model(folder))
    }

    /// The stage whose model the folder is.
    pub fn made_by(self, folder: &Path) -> Option<Stage> {
        let makes = |stage: &Stage| self.0.run.final_model(*stage) == folder;
        self.0.stages().into_iter().find(makes)
    }
}

/// Whether a folder has a model, or adapters, in it already.
pub fn is_model(folder: &Path) -> bool {
    [CONFIG, ADAPTER_CONFIG]
        .iter()
        .any(|file| folder.join(file).is_file())
}

fn adapter_in(folder: &Path) -> Result<Option<lora::Lora>> {
    let Some(adapter) = AdapterConfig::find(folder)? else {
        return Ok(None);
    };
    let base = HfConfig::read(&adapter.base_folder(folder)?)?.decoder;
    Ok(Some(AdapterFolder::open(folder, &base)?.lora))
}
