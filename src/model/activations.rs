//! The memory of a training pass: activations that are held for the backward pass, and buffers of
//! the backward pass itself.
//!
//! The memory of a layer is that of its branches, as `ops::residual` counts it. On a device without
//! this crate's kernels the graph holds more.

use super::block::branch_kinds;
use super::config::{DecoderConfig, Position};
use super::lora::Lora;
use crate::config::Recompute;
use crate::ops::residual::memory::BranchMemory;

/// A forward pass with its backward pass.
#[derive(Clone, Copy, Debug)]
pub struct TrainingPass<'a> {
    /// The model.
    pub decoder: &'a DecoderConfig,
    /// The adapters of the model, if it has any.
    pub lora: Option<&'a Lora>,
    /// The number of tokens.
    pub rows: usize,
    /// The first layer that records a graph.
    pub first: usize,
    /// Whether layers compute their activations again.
    pub recompute: Recompute,
}

impl TrainingPass<'_> {
    /// Bytes of the activations that are held from the forward pass to the backward pass.
    pub fn held(&self) -> usize {
        let hidden = self.decoder.hidden_size;
        let layers = self.decoder.num_hidden_layers - self.first;
        // Adapters are not among the activations that are held, so all layers hold the same.
        let layer: usize = self.branches(0).iter().map(BranchMemory::held).sum();
        // Input and result of the final norm.
        let above = 2 * hidden;
        // The graph holds the embeddings of tokens and of positions besides their sum, unless they
        // are frozen, as they are below adapters.
        let below = match (self.first, self.decoder.position, self.lora) {
            (0, Position::Learned, None) => 2 * hidden,
            _ => 0,
        };
        self.bytes(layers * layer + above + below)
    }

    /// Bytes of the softmax's sums that attention on a GPU holds for its backward pass, one for
    /// each head and row.
    pub fn attention_sums(&self) -> usize {
        let layers = self.decoder.num_hidden_layers - self.first;
        self.bytes(layers * self.decoder.num_attention_heads)
    }

    /// Bytes of the buffers of the backward pass, for the branch that needs most.
    pub fn backward(&self) -> usize {
        let layers = self.first..self.decoder.num_hidden_layers;
        let branches = layers.flat_map(|layer| self.branches(layer));
        let largest = branches.map(|branch| branch.backward()).max();
        // Gradients of the residual stream: the incoming and the outgoing one, and the graph's sum
        // of both.
        self.bytes(largest.unwrap_or(0) + 3 * self.decoder.hidden_size)
    }

    /// The two branches of layer `layer`.
    fn branches(&self, layer: usize) -> [BranchMemory; 2] {
        branch_kinds(self.decoder, self.lora, layer).map(|chain| BranchMemory {
            hidden: self.decoder.hidden_size,
            chain,
            recompute: self.recompute,
        })
    }

    fn bytes(&self, columns: usize) -> usize {
        self.rows * columns * size_of::<f32>()
    }
}
