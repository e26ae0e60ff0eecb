//! The decoder: embeddings, layers, final norm, head.
//!
//! A decoder owns its parameters and runs on packed sequences. candle's graph begins at the lowest
//! trained parameter; below it, and in inference, nothing is recorded. A pass can be cut at the
//! input of a layer, so that decoders that share the layers below run these once.

mod adapters;
mod assembly;
mod cached;
mod layers;

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use kernels::attention::{Attention, Segments};

use super::block::Block;
use super::config::{DecoderConfig, is_embedding, layer_of};
use super::hf_config::HfConfig;
use super::lora::Lora;
pub use crate::config::Recompute;
use crate::ops::attention::PackedTokens;
use crate::ops::embedding::embed;
use crate::ops::head::{BothLogProbs, Target, TokenLogProbs, both_log_probs, token_log_probs};
use crate::ops::linear::{Linear, Projection};
use crate::ops::norm::Norm;
use crate::ops::param::{Param, ParamStore, Trainability};
use crate::ops::residual::WantedRows;
use crate::ops::rope::Rotation;

pub use assembly::{Holding, TensorSource};
use layers::{Tokens, enter_graph};

/// Whether a forward pass will be differentiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    /// No graph is recorded.
    Skip,
    /// The graph above the lowest trained parameter is recorded.
    Record(Recompute),
}

/// A decoder with its parameters.
pub struct Decoder {
    config: HfConfig,
    store: ParamStore,
    embedding: Arc<Param>,
    positions: Option<Arc<Param>>,
    rotation: Option<Rotation>,
    layers: Vec<(Block, Trainability)>,
    norm: Norm,
    head: Arc<Param>,
    score: Option<Linear>,
    lora: Option<Lora>,
}

impl Decoder {
    /// The configuration of the model folder.
    pub fn config(&self) -> &HfConfig {
        &self.config
    }

    /// The configuration, for changes before [`Self::save`] (stop ids, padding).
    pub fn config_mut(&mut self) -> &mut HfConfig {
        &mut self.config
    }

    /// The architecture: sizes and kinds of layers.
    pub fn decoder_config(&self) -> &DecoderConfig {
        &self.config.decoder
    }

    /// The store of all parameters.
    pub fn params(&self) -> &ParamStore {
        &self.store
    }

    /// The attention of a layer, which determines the cache's layout.
    pub fn attention(&self, layer: usize) -> Attention {
        self.layers[layer].0.spec
    }

    /// Hidden states after the final norm of packed sequences: `[tokens, hidden]`.
    ///
    /// # Errors
    /// If an id lies outside the vocabulary, a sequence is longer than the context, or the device
    /// fails.
    pub fn forward(&self, ids: &[u32], segments: &Segments, gradient: Gradient) -> Result<Tensor> {
        self.forward_at(ids, segments, None, gradient)
    }

    /// The `wanted` rows of [`Self::forward`], bit for bit. Other rows are not computed above the
    /// last layer's attention.
    ///
    /// # Errors
    /// As [`Self::forward`], and if a row does not exist.
    pub fn forward_at(
        &self,
        ids: &[u32],
        segments: &Segments,
        wanted: WantedRows,
        gradient: Gradient,
    ) -> Result<Tensor> {
        check_wanted(&wanted, segments)?;
        let positions = segments.positions();
        let x = self.embed(ids, &positions, gradient)?;
        self.upwards(0, x, segments, &wanted, gradient)
    }

    /// The residual stream of packed sequences at the input of layer `layer`, or after the last
    /// layer if `layer` is the number of layers: `[tokens, hidden]`, without a graph.
    ///
    /// # Errors
    /// As [`Self::forward`], and if there is no such layer.
    pub fn hidden_at(&self, layer: usize, ids: &[u32], segments: &Segments) -> Result<Tensor> {
        self.check_boundary(layer)?;
        let (positions, mut tokens) = (
            segments.positions(),
            Tokens::Packed(PackedTokens::new(segments), Recompute::None),
        );
        let x = self.embed(ids, &positions, Gradient::Skip)?;
        self.run(0..layer, x, &positions, &None, Gradient::Skip, &mut tokens)
    }

    /// [`Self::forward_at`] from layer `layer` on, given the result of [`Self::hidden_at`] for the
    /// same segments, with the same bits. The graph begins at the lowest trained parameter above
    /// the boundary.
    ///
    /// # Errors
    /// As [`Self::forward`]; if shapes disagree; or if a graph is recorded and a parameter below
    /// the boundary is trained, because it would get no gradient.
    pub fn forward_from(
        &self,
        layer: usize,
        hidden: &Tensor,
        segments: &Segments,
        wanted: WantedRows,
        gradient: Gradient,
    ) -> Result<Tensor> {
        self.check_boundary(layer)?;
        check_wanted(&wanted, segments)?;
        let needed = [segments.tokens(), self.config.decoder.hidden_size];
        if hidden.dims() != needed {
            bail!(
                "hidden states {:?} at layer {layer} where {needed:?} are needed",
                hidden.dims()
            );
        }
        if let (Gradient::Record(_), Some(below)) = (gradient, self.trained_below(layer)) {
            bail!(
                "{below} is trained and is below layer {layer}: a pass from that layer on gives \
                 it no gradient"
            );
        }
        self.upwards(layer, hidden.detach(), segments, &wanted, gradient)
    }

    /// Runs the layers from `layer` on and the final norm.
    fn upwards(
        &self,
        layer: usize,
        x: Tensor,
        segments: &Segments,
        wanted: &WantedRows,
        gradient: Gradient,
    ) -> Result<Tensor> {
        let recompute = match gradient {
            Gradient::Skip => Recompute::None,
            Gradient::Record(recompute) => recompute,
        };
        let mut tokens = Tokens::Packed(PackedTokens::new(segments), recompute);
        let x = self.run(
            layer..self.layers.len(),
            x,
            &segments.positions(),
            wanted,
            gradient,
            &mut tokens,
        )?;
        self.norm
            .forward(&enter_graph(x, gradient, Trainability::Trained)?)
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

    /// The results of [`Self::log_probs`], and log-probs over the whole vocabulary.
    ///
    /// # Errors
    /// As [`token_log_probs`].
    pub fn both_log_probs(
        &self,
        hidden: &Tensor,
        targets: &[Target],
        temperature: f32,
    ) -> Result<BothLogProbs> {
        both_log_probs(hidden, &self.head, targets, temperature)
    }

    /// Logits of hidden states: `[rows, vocabulary]`.
    ///
    /// # Errors
    /// If the width is wrong or the device fails.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Linear::new(vec![Projection::new(self.head.clone(), None)])?.forward(hidden)
    }

    /// The scalar head at each row of the hidden states: `[rows]`, on the CPU.
    ///
    /// # Errors
    /// If the model has no scalar head.
    pub fn scores(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.score {
            Some(score) => score.forward(hidden)?.squeeze(1)?.to_device(&Device::Cpu),
            None => bail!("the model has no scalar head (score.weight)"),
        }
    }

    /// Token embeddings, plus position embeddings if the family has them.
    fn embed(&self, ids: &[u32], positions: &[u32], gradient: Gradient) -> Result<Tensor> {
        let limit = self.config.decoder.max_position_embeddings;
        if let Some(p) = positions.iter().find(|&&p| p as usize >= limit) {
            bail!(
                "a sequence has a token at position {p}; the model's context is {limit} tokens \
                 (max_position_embeddings)"
            );
        }
        let mut x = embed(&self.embedding, ids)?;
        if let Some(table) = &self.positions {
            x = (x + embed(table, positions)?)?;
        }
        Ok(match gradient {
            Gradient::Skip => x.detach(),
            Gradient::Record(_) => x,
        })
    }

    fn check_boundary(&self, layer: usize) -> Result<()> {
        let layers = self.layers.len();
        if layer > layers {
            bail!("there is no boundary {layer}: the model has {layers} layers");
        }
        Ok(())
    }

    /// The name of a trained parameter below `layer`, if there is one.
    fn trained_below(&self, layer: usize) -> Option<String> {
        let lies_below = |name: &str| match layer_of(name) {
            Some(of) => of < layer,
            None => is_embedding(name),
        };
        let name = |param: &Arc<Param>| param.name().to_owned();
        self.store.trained().map(name).find(|name| lies_below(name))
    }
}

fn check_wanted(wanted: &WantedRows, segments: &Segments) -> Result<()> {
    let rows = segments.tokens();
    let outside = |row: &&u32| **row as usize >= rows;
    if wanted.as_ref().is_some_and(|wanted| wanted.is_empty()) {
        bail!("no row of a pass of {rows} rows is wanted")
    }
    match wanted.iter().flat_map(|wanted| wanted.iter()).find(outside) {
        Some(row) => bail!("row {row} is wanted, but the pass has {rows} rows"),
        None => Ok(()),
    }
}
