//! Assembles decoders from parameters that are drawn, read from a Hugging Face folder, or shared
//! with another decoder; and writes them to folders.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Result, bail};

use super::Decoder;
use crate::config::ScoreAt;
use crate::model::ModelError;
use crate::model::block::{Block, norm};
use crate::model::config::{Head, LM_HEAD, SCORE, TensorSpec, layer_of, weight};
use crate::model::frequencies::rotation;
use crate::model::hf_config::HfConfig;
use crate::model::init::fresh;
use crate::model::lora::{Lora, StoredModel, a_of, b_of, merged};
use crate::model::trunk::TrunkRecord;
use crate::model::weights::{DEFAULT_MAX_SHARD_BYTES, SaveDtype, save};
use crate::ops::backend::Backend;
use crate::ops::linear::{Linear, Projection};
use crate::ops::param::{InitialParam, Param, ParamStore, Trainability};
use crate::terminal;
use crate::terminal::Phase;

/// Owner of a tensor: the decoder, or another one.
#[derive(Clone)]
pub enum Holding {
    /// As the decoder's own parameter.
    Own(Trainability),
    /// As another decoder's frozen parameter, of the same name and shape.
    Shared(Arc<Param>),
}

/// Source of a decoder's tensor.
pub enum TensorSource {
    /// Row-major values in the engine's layout, for the decoder's own parameter.
    Values(Vec<f32>, Trainability),
    /// Another decoder's frozen parameter, of the same name and shape.
    Shared(Arc<Param>),
}

pub(super) type Fallible<T> = std::result::Result<T, ModelError>;

impl Decoder {
    /// A decoder with fresh weights, a function of `seed`.
    ///
    /// # Errors
    /// If the sizes do not fit together or the device has no room.
    pub fn fresh(
        config: HfConfig,
        seed: u64,
        training: impl Fn(&TensorSpec) -> Trainability,
        backend: &Backend,
    ) -> Fallible<Self> {
        let source =
            |spec: &TensorSpec| Ok(TensorSource::Values(fresh(spec, seed), training(spec)));
        Self::assemble(config, source, backend)
    }

    /// Reads a Hugging Face folder; for a PEFT folder its base, with the adapters merged into it. A
    /// scalar head on a language model is drawn from `seed`; every other tensor must be in the
    /// files.
    ///
    /// # Errors
    /// If a file or tensor is missing or wrong, or the files have tensors that `config.json` has no
    /// place for.
    pub fn load(
        folder: &Path,
        head: Head,
        seed: u64,
        training: impl Fn(&TensorSpec) -> Trainability,
        backend: &Backend,
    ) -> Fallible<Self> {
        let holding = |spec: &TensorSpec| Holding::Own(training(spec));
        Self::load_sharing(folder, head, seed, holding, backend)
    }

    /// [`Self::load`], except for tensors that another decoder already holds, which need not be in
    /// the folder; `holding` decides for each tensor.
    ///
    /// # Errors
    /// As [`Self::load`] and [`Self::assemble`].
    pub fn load_sharing(
        folder: &Path,
        head: Head,
        seed: u64,
        holding: impl Fn(&TensorSpec) -> Holding,
        backend: &Backend,
    ) -> Fallible<Self> {
        let _phase = Phase::begin(format!("loading {}", folder.display()));
        let mut config = HfConfig::read(folder)?;
        let found = config.decoder.head;
        if head == Head::LanguageModel {
            ModelError::check_head(folder, found, head)?;
        }
        config.decoder.head = head;
        let weights = StoredModel::open(folder)?;
        weights.refuse_unexpected(&config.decoder.tensors())?;
        say_unused_head(&weights, found, folder);
        let source = |spec: &TensorSpec| match holding(spec) {
            Holding::Shared(param) => Ok(TensorSource::Shared(param)),
            Holding::Own(training) if found != head && spec.name == weight(SCORE) => {
                Ok(TensorSource::Values(fresh(spec, seed), training))
            }
            Holding::Own(training) => Ok(TensorSource::Values(weights.load(spec)?, training)),
        };
        Self::assemble(config, source, backend)
    }

    /// Reads a reward model. Unlike with [`Self::load`], the folder must hold the scalar head.
    ///
    /// # Errors
    /// As [`Self::load`], and if the folder holds a language model.
    pub fn load_reward_model(
        folder: &Path,
        training: impl Fn(&TensorSpec) -> Trainability,
        backend: &Backend,
    ) -> Fallible<Self> {
        Self::check_reward_model(folder)?;
        Self::load(folder, Head::Score, 0, training, backend)
    }

    /// Checks by its `config.json` that a folder holds a reward model.
    ///
    /// # Errors
    /// If it holds a language model, or cannot be read.
    pub fn check_reward_model(folder: &Path) -> Fallible<()> {
        let found = HfConfig::read(folder)?.decoder.head;
        ModelError::check_head(folder, found, Head::Score)
    }

    /// A decoder from the sources that `source` names for its tensors.
    ///
    /// # Errors
    /// If the sizes do not fit together, a source fails, the device has no room, or a shared
    /// parameter is trained, belongs to another backend, or has another name or shape than the
    /// tensor.
    pub fn assemble(
        config: HfConfig,
        source: impl Fn(&TensorSpec) -> Fallible<TensorSource>,
        backend: &Backend,
    ) -> Fallible<Self> {
        Self::assemble_adapted(config, None, source, backend)
    }

    /// [`Self::assemble`] with adapters, whose tensors also come from `source`.
    pub(super) fn assemble_adapted(
        config: HfConfig,
        lora: Option<Lora>,
        source: impl Fn(&TensorSpec) -> Fallible<TensorSource>,
        backend: &Backend,
    ) -> Fallible<Self> {
        config.decoder.validate()?;
        let (mut own, mut shared) = (Vec::new(), Vec::new());
        let adapters = lora.iter().flat_map(Lora::tensors);
        let specs = config.decoder.tensors().into_iter().chain(adapters);
        let specs: Vec<TensorSpec> = specs.collect();
        let phase = Phase::counted("tensors", specs.len());
        for spec in specs {
            phase.add(1);
            match source(&spec)? {
                TensorSource::Shared(param) => {
                    check_shared(&param, &spec)?;
                    shared.push(param);
                }
                TensorSource::Values(data, training) => own.push(InitialParam {
                    name: spec.name,
                    shape: spec.shape,
                    data,
                    training,
                }),
            }
        }
        let store = ParamStore::sharing(own, shared, backend)?;
        Ok(Self::from_store(config, lora, store)?)
    }

    fn from_store(config: HfConfig, lora: Option<Lora>, store: ParamStore) -> Result<Self> {
        let decoder = &config.decoder;
        let names = decoder.family.names();
        let embedding = store.get(&weight(names.embedding))?;
        let positions = names
            .positions
            .map(|module| store.get(&weight(module)))
            .transpose()?;
        let layers = (0..decoder.num_hidden_layers)
            .map(|layer| {
                Ok((
                    Block::new(&store, decoder, lora.as_ref(), layer)?,
                    layer_training(&store, layer),
                ))
            })
            .collect::<Result<_>>()?;
        let head = match decoder.head {
            Head::LanguageModel if !decoder.tie_word_embeddings => store.get(&weight(LM_HEAD))?,
            _ => embedding.clone(),
        };
        let score = match decoder.head {
            Head::Score => Some(Linear::new(vec![Projection::new(
                store.get(&weight(SCORE))?,
                None,
            )])?),
            Head::LanguageModel => None,
        };
        let norm = norm(&store, decoder, names.norm)?;
        Ok(Self {
            rotation: rotation(decoder),
            embedding,
            positions,
            layers,
            norm,
            head,
            score,
            lora,
            config,
            store,
        })
    }

    /// Writes the model as a Hugging Face folder, including shared tensors, with adapters merged
    /// into their weights; a reward model as `...ForSequenceClassification` with one label. Frozen
    /// layers below trained ones are recorded ([`TrunkRecord`]).
    ///
    /// # Errors
    /// If a file cannot be written or a scoring model has no padding token.
    pub fn save(&self, folder: &Path, dtype: SaveDtype) -> Fallible<()> {
        let fetch = |spec: &TensorSpec| self.merged_values(&spec.name).map(Into::into);
        let record = TrunkRecord::of(self)?;
        save(
            folder,
            &self.config.decoder.tensors(),
            dtype,
            DEFAULT_MAX_SHARD_BYTES,
            &record.map_or_else(BTreeMap::new, |record| record.notes()),
            fetch,
        )?;
        let mut config = self.config.clone();
        if config.decoder.head == Head::Score && config.score_at == ScoreAt::Eos {
            config.decoder.pad_token_id = config.scoring_pad_id().or(config.decoder.pad_token_id);
        }
        Ok(config.write(folder, dtype)?)
    }

    /// The elements of a parameter, row-major.
    pub(super) fn own_values(&self, name: &str) -> Result<Vec<f32>> {
        self.store.get(name)?.value().flatten_all()?.to_vec1()
    }

    /// The elements of a tensor, with its adapter merged if it has one.
    fn merged_values(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.own_values(name)?;
        let Some(lora) = &self.lora else {
            return Ok(values);
        };
        let mut modules = lora.modules.iter();
        let Some(module) = modules.find(|module| weight(&module.name) == name) else {
            return Ok(values);
        };
        let a = self.own_values(&a_of(&module.name))?;
        let b = self.own_values(&b_of(&module.name))?;
        Ok(merged(lora, module, values, &a, &b))
    }
}

/// Notes that the files have a head that the folder's `config.json` does not describe.
fn say_unused_head(weights: &StoredModel, found: Head, folder: &Path) {
    let (head, kind) = match found {
        Head::LanguageModel => (SCORE, "a language model"),
        Head::Score => (LM_HEAD, "a reward model"),
    };
    let name = weight(head);
    if weights.has(&name) {
        terminal::note_once(format!(
            "{}: {name} is not used, because config.json describes {kind}",
            folder.display()
        ));
    }
}

fn check_shared(param: &Param, spec: &TensorSpec) -> Result<()> {
    if param.name() != spec.name || param.dims() != spec.shape {
        bail!(
            "{} {:?} cannot be shared as {} {:?}: name and shape must be the same",
            param.name(),
            param.dims(),
            spec.name,
            spec.shape
        );
    }
    Ok(())
}

fn layer_training(store: &ParamStore, layer: usize) -> Trainability {
    let trained = store.trained().any(|p| layer_of(p.name()) == Some(layer));
    if trained {
        Trainability::Trained
    } else {
        Trainability::Frozen
    }
}
