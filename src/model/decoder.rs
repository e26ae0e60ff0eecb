//! The decoder: embeddings, layers, final norm, head.
//!
//! It owns its parameters and runs on packed sequences. candle's graph begins at the lowest parameter that is trained; below it,
//! and everywhere in inference, nothing is recorded. Hugging Face folders come in and go out here.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};

use super::ModelError;
use super::block::{Block, norm};
use super::config::{DecoderConfig, Head, LM_HEAD, SCORE, TensorSpec, layer_of, weight};
use super::frequencies::rotation;
use super::hf_config::HfConfig;
use super::init::fresh;
use super::weights::{DEFAULT_MAX_SHARD_BYTES, SaveDtype, Weights, save};
use crate::ops::attention::cached::{Cache, NewTokens};
use crate::ops::attention::{self, Attention, Segments, attend};
use crate::ops::dispatch::has_kernels;
use crate::ops::embedding::embed;
use crate::ops::head::{Target, TokenLogProbs, token_log_probs};
use crate::ops::linear::{Linear, Projection};
use crate::ops::norm::Norm;
use crate::ops::param::{Initial, Param, ParamStore, Training};
use crate::ops::recompute::recompute;
use crate::ops::residual::Keep;
use crate::ops::rope::{Angles, Rotation};
use crate::ops::storage;

/// What a layer keeps for its backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// All activations.
    None,
    /// Its input alone; the activations are computed again.
    Block,
}

/// Whether a forward pass is to be differentiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    /// No graph is recorded.
    Skip,
    /// The graph of everything above the lowest trained parameter is recorded.
    Record(Recompute),
}

/// A decoder with its parameters.
pub struct Decoder {
    config: HfConfig,
    store: ParamStore,
    embedding: Arc<Param>,
    positions: Option<Arc<Param>>,
    rotation: Option<Rotation>,
    layers: Vec<(Block, Training)>,
    norm: Norm,
    head: Arc<Param>,
    score: Option<Linear>,
}

/// How attention sees the tokens of a forward pass.
enum Tokens<'a> {
    Packed(&'a Segments, Recompute),
    Cached(&'a mut Cache, &'a [NewTokens<'a>]),
}

impl Decoder {
    /// A decoder with fresh weights, a function of `seed`.
    ///
    /// # Errors
    /// If the sizes do not fit together or the device has no room.
    pub fn fresh(
        config: HfConfig,
        seed: u64,
        training: impl Fn(&TensorSpec) -> Training,
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        config.decoder.validate()?;
        Self::build(config, |spec| Ok(fresh(spec, seed)), training, device)
    }

    /// Reads a Hugging Face folder. A scalar head on a language model is drawn fresh from `seed`; every other tensor must be there.
    ///
    /// # Errors
    /// If a file or tensor is missing or wrong, or the file has tensors that the configuration knows nothing of.
    pub fn load(
        folder: &Path,
        head: Head,
        seed: u64,
        training: impl Fn(&TensorSpec) -> Training,
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        let mut config = HfConfig::read(folder)?;
        let found = config.decoder.head;
        if head == Head::LanguageModel && found == Head::Score {
            let (found, needed) = ("a reward model", "a language model");
            return Err(ModelError::Kind {
                folder: folder.to_owned(),
                found,
                needed,
            });
        }
        config.decoder.head = head;
        let weights = Weights::open(folder)?;
        weights.refuse_unexpected(&config.decoder.tensors())?;
        let value = |spec: &TensorSpec| match found != head && spec.name == weight(SCORE) {
            true => Ok(fresh(spec, seed)),
            false => weights.load(spec),
        };
        Self::build(config, value, training, device)
    }

    /// Reads a reward model; unlike [`Self::load`] it must have its head.
    ///
    /// # Errors
    /// As [`Self::load`], and if the folder holds a language model.
    pub fn load_reward_model(
        folder: &Path,
        training: impl Fn(&TensorSpec) -> Training,
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        if HfConfig::read(folder)?.decoder.head != Head::Score {
            let (found, needed) = (
                "a language model",
                "a reward model (...ForSequenceClassification with one label)",
            );
            return Err(ModelError::Kind {
                folder: folder.to_owned(),
                found,
                needed,
            });
        }
        Self::load(folder, Head::Score, 0, training, device)
    }

    fn build(
        config: HfConfig,
        value: impl Fn(&TensorSpec) -> std::result::Result<Vec<f32>, super::weights::WeightsError>,
        training: impl Fn(&TensorSpec) -> Training,
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        let initial = |spec: TensorSpec| {
            let (data, training) = (value(&spec)?, training(&spec));
            Ok(Initial {
                name: spec.name,
                shape: spec.shape,
                data,
                training,
            })
        };
        let initial = config
            .decoder
            .tensors()
            .into_iter()
            .map(initial)
            .collect::<std::result::Result<_, ModelError>>()?;
        Ok(Self::assemble(config, ParamStore::new(initial, device)?)?)
    }

    fn assemble(config: HfConfig, store: ParamStore) -> Result<Self> {
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
                    Block::new(&store, decoder, layer)?,
                    layer_training(&store, layer),
                ))
            })
            .collect::<Result<_>>()?;
        let head = match decoder.head {
            Head::LanguageModel if !decoder.tie_word_embeddings => store.get(&weight(LM_HEAD))?,
            _ => embedding.clone(),
        };
        let score = match decoder.head {
            Head::Score => Some(Linear::new(vec![Projection {
                weight: store.get(&weight(SCORE))?,
                bias: None,
            }])?),
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
            config,
            store,
        })
    }

    /// The configuration of the model folder.
    pub fn config(&self) -> &HfConfig {
        &self.config
    }

    /// The configuration, to be changed before [`Self::save`] (stop ids, padding).
    pub fn config_mut(&mut self) -> &mut HfConfig {
        &mut self.config
    }

    /// The decoder's description.
    pub fn decoder_config(&self) -> &DecoderConfig {
        &self.config.decoder
    }

    /// All parameters.
    pub fn params(&self) -> &ParamStore {
        &self.store
    }

    /// The attention of a layer, which shapes the cache.
    pub fn attention(&self, layer: usize) -> Attention {
        self.layers[layer].0.spec
    }

    /// Hidden states after the final norm of packed sequences: `[tokens, hidden]`.
    ///
    /// # Errors
    /// If an id lies outside the vocabulary, a sequence is longer than the context, or the device fails.
    pub fn forward(&self, ids: &[u32], segments: &Segments, gradient: Gradient) -> Result<Tensor> {
        let recompute = match gradient {
            Gradient::Skip => Recompute::None,
            Gradient::Record(recompute) => recompute,
        };
        let x = self.run(
            ids,
            &segments.positions(),
            gradient,
            Tokens::Packed(segments, recompute),
        )?;
        self.norm.forward(&x)
    }

    /// Reads new tokens of several sequences into the cache and returns the hidden state after each sequence's last:
    /// `[sequences, hidden]`.
    ///
    /// # Errors
    /// As [`Self::forward`], and if a sequence lacks blocks.
    pub fn forward_cached(
        &self,
        ids: &[u32],
        news: &[NewTokens],
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let positions: Vec<u32> = news
            .iter()
            .flat_map(|n| n.past as u32..(n.past + n.count) as u32)
            .collect();
        let x = self.run(ids, &positions, Gradient::Skip, Tokens::Cached(cache, news))?;
        let last = news.iter().scan(0, |end, n| {
            *end += n.count as u32;
            Some(*end - 1)
        });
        let last = Tensor::from_iter(last, x.device())?;
        self.norm.forward(&x.index_select(&last, 0)?)
    }

    /// Log-probability and entropy of tokens, given the hidden states of [`Self::forward`].
    ///
    /// # Errors
    /// As [`token_log_probs`].
    pub fn log_probs(
        &self,
        hidden: &Tensor,
        targets: &[Target],
        temperature: f32,
    ) -> Result<TokenLogProbs> {
        token_log_probs(hidden, &self.head, targets, temperature)
    }

    /// Logits of hidden states: `[rows, vocabulary]`.
    ///
    /// # Errors
    /// If the width is wrong or the device fails.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Linear::new(vec![Projection {
            weight: self.head.clone(),
            bias: None,
        }])?
        .forward(hidden)
    }

    /// The scalar head at each of `rows` of the hidden states: `[rows]`.
    ///
    /// # Errors
    /// If the model has no scalar head.
    pub fn scores(&self, hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let Some(score) = &self.score else {
            candle_core::bail!("the model has no scalar head (score.weight)")
        };
        let rows = Tensor::from_slice(rows, rows.len(), hidden.device())?;
        score.forward(&hidden.index_select(&rows, 0)?)?.squeeze(1)
    }

    /// Writes the model as a Hugging Face folder; a reward model as `...ForSequenceClassification` with one label.
    ///
    /// # Errors
    /// If a file cannot be written or a scoring model has no padding token.
    pub fn save(&self, folder: &Path, dtype: SaveDtype) -> std::result::Result<(), ModelError> {
        let mut config = self.config.clone();
        if config.decoder.head == Head::Score {
            config.decoder.pad_token_id = config.scoring_pad_id().or(config.decoder.pad_token_id);
        }
        let fetch = |spec: &TensorSpec| self.values(&spec.name).map(Into::into);
        save(
            folder,
            &config.decoder.tensors(),
            dtype,
            DEFAULT_MAX_SHARD_BYTES,
            fetch,
        )?;
        Ok(config.write(folder, dtype)?)
    }

    /// The elements of a parameter, row-major.
    fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.store.get(name)?.value().flatten_all()?.to_vec1()
    }

    fn run(
        &self,
        ids: &[u32],
        positions: &[u32],
        gradient: Gradient,
        mut tokens: Tokens,
    ) -> Result<Tensor> {
        let limit = self.config.decoder.max_position_embeddings;
        if let Some(p) = positions.iter().find(|&&p| p as usize >= limit) {
            candle_core::bail!(
                "a sequence has a token at position {p}; the model's context holds {limit} (max_position_embeddings)"
            );
        }
        let mut x = embed(&self.embedding, ids)?;
        if let Some(table) = &self.positions {
            x = (x + embed(table, positions)?)?;
        }
        let angles = self.rotation.as_ref().map(|r| r.angles(positions));
        if gradient == Gradient::Skip {
            x = x.detach();
        }
        let below = match has_kernels(x.device()) {
            true => self.layers_below_graph(&x, gradient),
            false => 0,
        };
        if below > 0 {
            x = self.run_rows(&x, below, angles.as_ref(), &mut tokens)?;
        }
        for (layer, (block, training)) in self.layers.iter().enumerate().skip(below) {
            x = enter_graph(x, gradient, *training)?;
            x = run_layer(block, layer, &x, angles.as_ref(), &mut tokens)?;
        }
        enter_graph(x, gradient, Training::Trained)
    }

    /// Lowest layers that no graph is recorded of: those before the first trained one, or all.
    fn layers_below_graph(&self, x: &Tensor, gradient: Gradient) -> usize {
        let trained = |(_, training): &(Block, Training)| *training == Training::Trained;
        let first = match gradient {
            Gradient::Record(_) if x.track_op() => Some(0),
            Gradient::Record(_) => self.layers.iter().position(trained),
            Gradient::Skip => None,
        };
        first.unwrap_or(self.layers.len())
    }

    /// The lowest `count` layers in place.
    fn run_rows(
        &self,
        x: &Tensor,
        count: usize,
        angles: Option<&Angles>,
        tokens: &mut Tokens,
    ) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let mut x = storage::read(x, storage::copied)?;
        for (layer, (block, _)) in self.layers.iter().enumerate().take(count) {
            block.forward_rows(&mut x, rows, angles, |qkv, spec| match tokens {
                Tokens::Cached(cache, news) => cache.attend(layer, qkv, news, spec),
                Tokens::Packed(segments, _) => attention::attend_rows(qkv, segments, spec),
            })?;
        }
        Tensor::from_vec(x, (rows, width), &Device::Cpu)
    }
}

/// Makes `x` the graph's entry where the first trained parameter follows and nothing below was recorded.
fn enter_graph(x: Tensor, gradient: Gradient, next: Training) -> Result<Tensor> {
    match (gradient, next) {
        (Gradient::Record(_), Training::Trained) if !x.track_op() => {
            Ok(Var::from_tensor(&x)?.as_tensor().clone())
        }
        _ => Ok(x),
    }
}

fn run_layer(
    block: &Block,
    layer: usize,
    x: &Tensor,
    angles: Option<&Angles>,
    tokens: &mut Tokens,
) -> Result<Tensor> {
    match tokens {
        Tokens::Cached(cache, news) => block.forward(x, angles, |qkv, spec| {
            cache.attend_tensor(layer, qkv, news, spec)
        }),
        Tokens::Packed(segments, recompute) if x.track_op() => {
            run_recorded(block, x, angles, segments, *recompute)
        }
        Tokens::Packed(segments, _) => {
            block.forward(x, angles, |qkv, spec| attend(qkv, segments, spec))
        }
    }
}

/// A layer whose backward pass will come.
fn run_recorded(
    block: &Block,
    x: &Tensor,
    angles: Option<&Angles>,
    segments: &Segments,
    mode: Recompute,
) -> Result<Tensor> {
    let keep = match mode {
        Recompute::None => Keep::All,
        Recompute::Block => Keep::Input,
    };
    if has_kernels(x.device()) {
        return block.forward_chained(x, angles, segments, keep);
    }
    let (block, angles, segments) = (block.clone(), angles.cloned(), segments.clone());
    let run = move |x: &Tensor| {
        block.forward(x, angles.as_ref(), |qkv, spec| attend(qkv, &segments, spec))
    };
    match mode {
        Recompute::None => run(x),
        Recompute::Block => recompute(x, Arc::new(run)),
    }
}

fn layer_training(store: &ParamStore, layer: usize) -> Training {
    let trained = store.trained().any(|p| layer_of(p.name()) == Some(layer));
    if trained {
        Training::Trained
    } else {
        Training::Frozen
    }
}
