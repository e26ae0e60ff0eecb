//! The memory of a training pass: activations that are held for the backward pass, and buffers of
//! the backward pass itself.
//!
//! It follows `model::block` and `ops::residual`: a layer is two branches; each holds its
//! input, and the inputs of its operations that are neither cheap to compute again nor overwritten.
//! Counted are `f32` values of one row. Memory that does not grow with the rows, such as packed
//! panels and the scratch of threads, is not counted. On a device without our kernels the graph
//! holds more.

use super::config::{Activation, DecoderConfig, Position, QkNorm};
use crate::config::Recompute;

/// A forward pass with its backward pass.
#[derive(Clone, Copy, Debug)]
pub struct TrainingPass<'a> {
    /// The model.
    pub decoder: &'a DecoderConfig,
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
        let layers = self.decoder.num_hidden_layers - self.first;
        let widths = Widths::of(self.decoder);
        // Input and result of the final norm.
        let above = 2 * widths.hidden;
        // A graph of the embeddings holds those of tokens and positions besides their sum.
        let below = match (self.first, self.decoder.position) {
            (0, Position::Learned) => 2 * widths.hidden,
            _ => 0,
        };
        self.bytes(layers * widths.held(self.recompute) + above + below)
    }

    /// Bytes of the buffers of the backward pass, for the branch that needs most.
    pub fn backward(&self) -> usize {
        let widths = Widths::of(self.decoder);
        match self.first < self.decoder.num_hidden_layers {
            true => self.bytes(widths.backward(self.recompute)),
            false => self.bytes(widths.gradients()),
        }
    }

    fn bytes(&self, columns: usize) -> usize {
        self.rows * columns * size_of::<f32>()
    }
}

/// Columns of the tensors in a layer.
struct Widths {
    hidden: usize,
    qkv: usize,
    /// Copies of `q | k | v` that the backward pass reads: before and after the norms of heads.
    qkv_inputs: usize,
    /// The result of attention.
    mixed: usize,
    /// Inside the feed-forward sub-layer, before (`up`) and after (`inner`) its activation.
    up: usize,
    inner: usize,
}

impl Widths {
    fn of(decoder: &DecoderConfig) -> Self {
        let inner = decoder.intermediate_size;
        Self {
            hidden: decoder.hidden_size,
            qkv: decoder.query_size() + 2 * decoder.key_value_size(),
            qkv_inputs: match decoder.qk_norm {
                QkNorm::Absent => 1,
                QkNorm::PerHead => 2,
            },
            mixed: decoder.query_size(),
            up: match decoder.activation {
                Activation::SwiGlu => 2 * inner,
                Activation::GeluTanh | Activation::Gelu => inner,
            },
            inner,
        }
    }

    /// Columns held of one layer: the inputs of its branches, and of their operations.
    fn held(&self, recompute: Recompute) -> usize {
        let branches = 2 * self.hidden;
        match recompute {
            Recompute::None => branches + self.qkv_inputs * self.qkv + self.mixed + self.up,
            Recompute::Block => branches,
        }
    }

    /// Columns in the backward pass of the branch that needs most: inputs that are computed again,
    /// then the gradients on both sides of an operation with the result that it reads.
    fn backward(&self, recompute: Recompute) -> usize {
        let attention = 2 * self.mixed + self.qkv;
        let feed_forward = 2 * self.inner + self.up;
        let (again, more) = match recompute {
            Recompute::None => (0, 0),
            Recompute::Block => (
                self.hidden + self.qkv_inputs * self.qkv,
                self.hidden + self.up,
            ),
        };
        (attention + again).max(feed_forward + more) + self.gradients()
    }

    /// Columns of the gradients of the residual stream: the incoming and the outgoing one, and the
    /// graph's sum of both.
    fn gradients(&self) -> usize {
        3 * self.hidden
    }
}
