//! Whether the judge of PPO will share what the roles have in common, as loading it will find out.
//!
//! A judge that is yet to be made is known by its table. One that is there is held against the policy's trunk: there alone does a plan
//! read weights.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::models::{Folders, is_model};
use super::roles::{Judge, Start};
use crate::config::{Ppo, StageTable};
use crate::model::ModelError;
use crate::model::config::Head;
use crate::model::hf_config::adapter::AdapterConfig;
use crate::model::trunk::Trunk;
use crate::roles::Sharing;
use crate::stages::ppo::sharing;

impl Folders<'_> {
    /// The judge in `folder`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn judge(self, folder: &Path, config: &Ppo) -> Result<Judge> {
        let start = self.start(folder, Head::Score)?;
        let shares = match sharing(config) {
            Sharing::None => false,
            Sharing::Trunk { layers } => self.is_on_trunk(folder, &start, &config.from, layers)?,
            Sharing::Adapter(_) => {
                start.adapter.is_some() && self.base(folder)? == self.base(&config.from)?
            }
        };
        Ok(match shares {
            true => Judge::Sharing(start),
            false => Judge::Alone(start.decoder),
        })
    }

    /// Whether the judge has, or will have, the policy's lowest layers.
    fn is_on_trunk(
        self,
        folder: &Path,
        start: &Start,
        policy: &Path,
        layers: usize,
    ) -> Result<bool> {
        let Some(stage) = self.to_be_made_by(folder) else {
            return match is_model(policy) {
                true => have_one_trunk(policy, folder, layers),
                false => Ok(false),
            };
        };
        let frozen = match &start.adapter {
            Some(lora) => lora.lowest_layer(),
            None => {
                let keys = self.0.table(stage).and_then(StageTable::examples);
                keys.map(|keys| keys.trainable.freeze_layers)
            }
        };
        Ok(self.from(stage) == Some(policy) && frozen >= Some(layers))
    }

    /// The folder of the model that adapters in `folder` stand on, or will stand on; `folder` itself where it has none.
    fn base(self, folder: &Path) -> Result<PathBuf> {
        let base = match self.to_be_made_by(folder) {
            Some(stage) => {
                let start = self.from(stage).filter(|_| self.lora(stage).is_some());
                start.map(|start| self.base(start)).transpose()?
            }
            None => {
                let adapter = AdapterConfig::find(folder)?;
                adapter.map(|a| a.base_folder(folder)).transpose()?
            }
        };
        let base = base.unwrap_or_else(|| folder.to_owned());
        Ok(base.canonicalize().unwrap_or(base))
    }
}

/// Whether two models have their lowest layers in common. Weights that are not there yet, or cannot be read, are taken for others.
fn have_one_trunk(a: &Path, b: &Path, layers: usize) -> Result<bool> {
    match Trunk::in_folder(a, layers).and_then(|trunk| trunk.check(b)) {
        Ok(()) => Ok(true),
        Err(
            ModelError::OtherTrunk { .. } | ModelError::OtherLayers { .. } | ModelError::Weights(_),
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
