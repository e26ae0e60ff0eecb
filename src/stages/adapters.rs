//! The trained part of a supervised stage's model: all weights, those above frozen layers, or
//! adapters.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::freezing::Frozen;
use crate::config::Trainable;
use crate::model::Decoder;
use crate::model::config::{Head, TensorSpec};
use crate::model::hf_config::HfConfig;
use crate::model::hf_config::adapter::AdapterConfig;
use crate::ops::backend::Backend;
use crate::ops::param::Trainability;
use crate::ops::work::{self, DeviceWork};

/// A model to be trained.
pub struct Trainee {
    /// The model.
    pub model: Decoder,
    /// Folder of the base of the adapters that are trained; `None` without adapters.
    pub base: Option<PathBuf>,
}

/// The model that a stage starts from.
pub struct StartingModel<'a> {
    /// Name of the stage's table.
    pub table: &'static str,
    /// The model folder.
    pub from: &'a Path,
    /// The head to be trained.
    pub head: Head,
    /// Seed of fresh weights.
    pub seed: u64,
    /// Backend of the model's operations.
    pub backend: &'a Backend,
}

impl Trainee {
    /// A model that is trained as a whole.
    pub fn whole(model: Decoder) -> Self {
        Self { model, base: None }
    }

    /// Loads the model that a stage starts from. With a `lora` table, the model is frozen and has
    /// adapters: new ones, or those of a PEFT folder, which must have the table's settings. Without
    /// the table, the adapters of a PEFT folder are merged.
    ///
    /// # Errors
    /// A file that is wrong, a model with fewer layers than are to be frozen, or adapters that do
    /// not fit the model or differ from those of the PEFT folder.
    pub fn load(start: &StartingModel, trainable: &Trainable) -> Result<Self> {
        let _work = work::begin(DeviceWork::Loading("model"));
        let Some(lora) = &trainable.lora else {
            let (head, seed, frozen) = (start.head, start.seed, Frozen::from(trainable));
            let training = |spec: &TensorSpec| frozen.training(spec);
            let model = Decoder::load(start.from, head, seed, training, start.backend)?;
            let layers = model.decoder_config().num_hidden_layers;
            frozen.check(start.table, start.from, layers)?;
            return Ok(Self { model, base: None });
        };
        let key = || format!("{}.lora", start.table);
        let (model, base) = match AdapterConfig::find(start.from)? {
            None => {
                let base = base(start.from, start)?;
                let (head, seed) = (start.head, start.seed);
                let model = Decoder::adapt(&base, lora, head, seed, Trainability::Trained);
                (model.with_context(key)?, start.from.to_owned())
            }
            Some(adapter) => {
                let folder = adapter.base_folder(start.from)?;
                let base = base(&folder, start)?;
                let (from, head, seed) = (start.from, start.head, start.seed);
                let model = Decoder::load_adapter(&base, from, head, seed, Trainability::Trained)?;
                model.check_adapters(lora, &key(), from)?;
                (model, folder)
            }
        };
        Ok(Self {
            model,
            base: Some(base),
        })
    }
}

/// The frozen model that adapters stand on, with the head that it has.
fn base(folder: &Path, start: &StartingModel) -> Result<Decoder> {
    let head = match start.head {
        Head::LanguageModel => Head::LanguageModel,
        Head::Score => HfConfig::read(folder)?.decoder.head,
    };
    let frozen = |_: &TensorSpec| Trainability::Frozen;
    Ok(Decoder::load(folder, head, 0, frozen, start.backend)?)
}
