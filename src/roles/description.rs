//! The description of a model folder: from its configuration and file headers, or from the tables
//! of the stage that is yet to write it. No weights are read.

use std::path::{Path, PathBuf};

use crate::config::{Ppo, Stage};
use crate::model::ModelError;
use crate::model::config::{DecoderConfig, Head, SCORE, weight};
use crate::model::hf_config::HfConfig;
use crate::model::hf_config::adapter::{ADAPTER_CONFIG, AdapterConfig};
use crate::model::lora::Lora;
use crate::model::lora::folder::AdapterFolder;

/// The file of a model's sizes.
const CONFIG: &str = "config.json";

/// A model folder: sizes, head and adapters.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDescription {
    /// The folder of the model.
    pub folder: PathBuf,
    /// Sizes and head of the model.
    pub decoder: DecoderConfig,
    /// The adapters of a PEFT folder.
    pub adapter: Option<AdapterDescription>,
    /// The folder whose tokenizer the model uses; `None` if that tokenizer is yet to be trained.
    pub tokenizer: Option<PathBuf>,
    /// The origin of the folder.
    pub origin: Origin,
}

/// The adapters of a PEFT folder.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterDescription {
    /// The adapted projections and their settings.
    pub lora: Lora,
    /// The folder of the model that the adapters were trained on.
    pub base: PathBuf,
    /// True if the folder holds a scalar head besides the adapters.
    pub has_score: bool,
}

/// Origin of a model folder.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// The folder exists.
    Files,
    /// A stage of the run is yet to write the folder.
    Stage {
        /// The stage.
        stage: Stage,
        /// The model that the stage starts from; `None` for pretraining.
        from: Option<Box<ModelDescription>>,
        /// The number of lowest layers that the stage leaves unchanged, embedding included.
        frozen_layers: usize,
    },
}

/// True if a folder holds a model or adapters.
pub fn is_model(folder: &Path) -> bool {
    [CONFIG, ADAPTER_CONFIG]
        .iter()
        .any(|file| folder.join(file).is_file())
}

impl ModelDescription {
    /// Reads the description of an existing folder from its configuration and file headers.
    ///
    /// # Errors
    /// If a file is missing or wrong, or an adapter does not fit its base.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let adapter = AdapterConfig::find(folder)?;
        let adapter = adapter.map(|config| AdapterDescription::read(folder, &config));
        Ok(Self {
            folder: folder.to_owned(),
            decoder: HfConfig::read(folder)?.decoder,
            adapter: adapter.transpose()?,
            tokenizer: Some(folder.to_owned()),
            origin: Origin::Files,
        })
    }

    /// The folder of the base if the model is an adapter, else the model's own.
    pub fn base(&self) -> &Path {
        let adapter = self.adapter.as_ref();
        adapter.map_or(&self.folder, |adapter| &adapter.base)
    }

    /// The model that the lowest `layers` layers come from: this one, or one that it is trained
    /// from by stages that leave these layers unchanged.
    pub(super) fn trunk_origin(&self, layers: usize) -> &Self {
        match &self.origin {
            Origin::Stage {
                from: Some(from),
                frozen_layers,
                ..
            } if *frozen_layers >= layers => from.trunk_origin(layers),
            _ => self,
        }
    }

    /// This model with another head.
    pub(super) fn with_head(&self, head: Head) -> Self {
        let mut model = self.clone();
        model.decoder.head = head;
        model
    }
}

impl AdapterDescription {
    fn read(folder: &Path, config: &AdapterConfig) -> Result<Self, ModelError> {
        let base = config.base_folder(folder)?;
        let adapter = AdapterFolder::open(folder, &HfConfig::read(&base)?.decoder)?;
        Ok(Self {
            has_score: adapter.has(&weight(SCORE)),
            lora: adapter.lora,
            base,
        })
    }
}

/// Descriptions of the model folders that `[ppo]` names.
#[derive(Clone, Debug, PartialEq)]
pub struct PpoModels {
    /// The policy, from which actor and reference start.
    pub policy: ModelDescription,
    /// The reward models, those of ensembles among them, in the order of the configuration.
    pub rewards: Vec<ModelDescription>,
    /// The reward model of evaluations.
    pub judge: Option<ModelDescription>,
}

impl PpoModels {
    /// Describes each folder that `config` names. A judge is described only if there are
    /// evaluations.
    ///
    /// # Errors
    /// The errors of `describe`.
    pub fn describe<E>(
        config: &Ppo,
        describe: impl Fn(&Path) -> Result<ModelDescription, E>,
    ) -> Result<Self, E> {
        let judge = config.judge_model.as_deref();
        let judge = judge.filter(|_| config.evaluates());
        let rewards = config.reward_model_folders();
        Ok(Self {
            policy: describe(&config.from)?,
            rewards: rewards
                .iter()
                .map(|f| describe(f))
                .collect::<Result<_, _>>()?,
            judge: judge.map(describe).transpose()?,
        })
    }
}
