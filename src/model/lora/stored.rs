//! The tensors of a model folder; for a PEFT folder, the tensors of its base with the adapters
//! merged into them.

use std::path::Path;

use super::folder::AdapterFolder;
use super::{a_of, b_of, merged};
use crate::model::ModelError;
use crate::model::config::{Head, SCORE, TensorSpec, weight};
use crate::model::fingerprint::{Fingerprint, FingerprintBuilder};
use crate::model::hf_config::HfConfig;
use crate::model::hf_config::adapter::AdapterConfig;
use crate::model::weights::{Weights, WeightsError};

/// A model folder, open for reading.
pub enum StoredModel {
    /// A whole model.
    Whole(Weights),
    /// A PEFT folder and its base.
    AdaptedFolder(Box<AdaptedFolder>),
}

/// A PEFT folder and its base.
pub struct AdaptedFolder {
    base: Weights,
    adapter: AdapterFolder,
}

impl StoredModel {
    /// Opens a model folder.
    ///
    /// # Errors
    /// If a file is missing or wrong, the folder has both weights and an adapter, or the adapter
    /// was trained on another base.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        match AdapterConfig::find(folder)? {
            Some(config) => {
                let base = config.base_folder(folder)?;
                Ok(Self::AdaptedFolder(Box::new(AdaptedFolder::open(
                    folder, &base,
                )?)))
            }
            None => Ok(Self::Whole(Weights::open(folder)?)),
        }
    }

    /// [`Weights::refuse_unexpected`] for the whole model, or for the base.
    ///
    /// # Errors
    /// As [`Weights::refuse_unexpected`].
    pub fn refuse_unexpected(&self, specs: &[TensorSpec]) -> Result<(), WeightsError> {
        match self {
            Self::Whole(weights) => weights.refuse_unexpected(specs),
            Self::AdaptedFolder(adapted) => adapted.base.refuse_unexpected(specs),
        }
    }

    /// Whether the files have a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Whole(weights) => weights.names().any(|found| found == name),
            Self::AdaptedFolder(adapted) => {
                adapted.adapter.has(name) || adapted.base.names().any(|found| found == name)
            }
        }
    }

    /// The values of a tensor, in the engine's shape and layout.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn load(&self, spec: &TensorSpec) -> Result<Vec<f32>, WeightsError> {
        match self {
            Self::Whole(weights) => weights.load(spec),
            Self::AdaptedFolder(adapted) => adapted.load(spec),
        }
    }
}

impl AdaptedFolder {
    /// The adapter in `folder` on the model in `base`.
    ///
    /// # Errors
    /// As [`StoredModel::open`].
    pub fn open(folder: &Path, base: &Path) -> Result<Self, ModelError> {
        let config = HfConfig::read(base)?.decoder;
        let adapter = AdapterFolder::open(folder, &config)?;
        let base = Weights::open(base)?;
        let mut adapted = config;
        if adapter.config.head == Head::Score {
            adapted.head = Head::Score;
        }
        adapter.check_base(|| Ok(fingerprint(&base, &adapted.tensors())?))?;
        Ok(Self { base, adapter })
    }

    /// True if the adapter's file records a checksum of its base, which [`Self::open`] has checked.
    pub fn has_note(&self) -> bool {
        self.adapter.has_note()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Vec<f32>, WeightsError> {
        let lora = &self.adapter.lora;
        if spec.name == weight(SCORE) && self.adapter.has(&spec.name) {
            return self.adapter.load(spec);
        }
        let values = self.base.load(spec)?;
        let is_meant = |name: &str| weight(name) == spec.name;
        let Some(module) = lora.modules.iter().find(|module| is_meant(&module.name)) else {
            return Ok(values);
        };
        let specs = lora.tensors();
        let read = |name: String| match specs.iter().find(|spec| spec.name == name) {
            Some(spec) => self.adapter.load(spec),
            None => Ok(Vec::new()),
        };
        let (a, b) = (read(a_of(&module.name))?, read(b_of(&module.name))?);
        Ok(merged(lora, module, values, &a, &b))
    }
}

/// Fingerprint of the tensors that an adapted model shares with its base.
fn fingerprint(base: &Weights, specs: &[TensorSpec]) -> Result<Fingerprint, WeightsError> {
    let (mut sums, score) = (FingerprintBuilder::default(), weight(SCORE));
    for spec in specs.iter().filter(|spec| spec.name != score) {
        sums.add(&spec.name, &base.load(spec)?);
    }
    Ok(sums.finish())
}
