//! The trained part of a supervised stage's model: all weights, those above frozen layers, or
//! adapters.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::context::Context;
use super::freezing::Frozen;
use crate::config::Trainable;
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::model::config::{Head, TensorSpec};
use crate::model::hf_config::HfConfig;
use crate::model::hf_config::adapter::AdapterConfig;
use crate::model::lora::RequestedLora;
use crate::ops::backend::Backend;
use crate::ops::param::Trainability;

/// A model to be trained, and the folder of its base if adapters are what is trained.
pub struct Trainee {
    /// The model.
    pub model: Decoder,
    base: Option<PathBuf>,
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

    /// Loads the model that a stage starts from; with a `lora` table frozen, with adapters. Those
    /// of a PEFT folder are trained further with the folder's settings; without the table they are
    /// merged.
    ///
    /// # Errors
    /// If a file is wrong, the model has fewer layers than are to be frozen, or the adapters do not
    /// fit it or the folder's own.
    pub fn load(start: &StartingModel, trainable: &Trainable) -> Result<Self> {
        let Some(lora) = &trainable.lora else {
            let (head, seed, frozen) = (start.head, start.seed, Frozen::from(trainable));
            let training = |spec: &TensorSpec| frozen.training(spec);
            let model = Decoder::load(start.from, head, seed, training, start.backend)?;
            let layers = model.decoder_config().num_hidden_layers;
            frozen.check(start.table, start.from, layers)?;
            return Ok(Self { model, base: None });
        };
        let asked = RequestedLora::from(lora);
        let key = || format!("{}.lora", start.table);
        let (model, base) = match AdapterConfig::find(start.from)? {
            None => {
                let base = base(start.from, start)?;
                let model = Decoder::adapt(
                    &base,
                    &asked.fresh(),
                    start.head,
                    start.seed,
                    Trainability::Trained,
                )
                .with_context(key)?;
                (model, start.from.to_owned())
            }
            Some(adapter) => {
                let folder = adapter.base_folder(start.from)?;
                let base = base(&folder, start)?;
                let (from, head, seed) = (start.from, start.head, start.seed);
                let model = Decoder::load_adapter(&base, from, head, seed, Trainability::Trained)?;
                model.check_adapters(&key(), &asked, from)?;
                (model, folder)
            }
        };
        Ok(Self {
            model,
            base: Some(base),
        })
    }

    /// Writes `final/`: the model, or its adapters as a PEFT folder, with the tokenizer.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_final(&self, context: &Context, tokenizer: &Tokenizer) -> Result<()> {
        match &self.base {
            None => context.write_final(&self.model, tokenizer),
            Some(base) => context.write_final_adapter(&self.model, base, tokenizer),
        }
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
