//! What a differentiated pass holds for its backward pass, and what that takes beside it.
//!
//! It follows `model::block` and [`crate::ops::residual`]: a layer is two branches, each holds its input and those inputs of its
//! operations that are neither cheap to make again nor overwritten. Counted are `f32` values of one row; what does not grow with the
//! rows, such as packed panels and the threads' scratch, is left out. On a device without our kernels the graph holds more.

use crate::model::Recompute;
use crate::model::config::{Activation, DecoderConfig, Position, QkNorm};

/// A forward pass that is differentiated.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// The model.
    pub decoder: &'a DecoderConfig,
    /// Tokens.
    pub rows: usize,
    /// The first layer with a graph.
    pub first: usize,
    /// What a layer keeps.
    pub recompute: Recompute,
}

impl Pass<'_> {
    /// Bytes that are held from the forward pass to the backward pass.
    pub fn held(&self) -> usize {
        let layers = self.decoder.num_hidden_layers - self.first;
        let widths = Widths::of(self.decoder);
        // What the final norm reads and what it makes.
        let above = 2 * widths.hidden;
        // A graph of the embeddings has those of tokens and positions beside their sum.
        let below = match (self.first, self.decoder.position) {
            (0, Position::Learned) => 2 * widths.hidden,
            _ => 0,
        };
        self.bytes(layers * widths.held(self.recompute) + above + below)
    }

    /// Most bytes that the backward pass of one branch has beside these.
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

/// Columns of what a layer computes.
struct Widths {
    hidden: usize,
    qkv: usize,
    /// Versions of `q | k | v` that the backward pass reads: those before and after the norms of heads.
    qkv_inputs: usize,
    /// Result of attention.
    mixed: usize,
    /// Inside the feed-forward sub-layer, before and after its activation.
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

    /// Of one layer: the inputs of its branches, and of their operations.
    fn held(&self, recompute: Recompute) -> usize {
        let branches = 2 * self.hidden;
        match recompute {
            Recompute::None => branches + self.qkv_inputs * self.qkv + self.mixed + self.up,
            Recompute::Block => branches,
        }
    }

    /// Of the branch that takes most: its inputs where they are computed again, then the gradients on both sides of an operation,
    /// with the result that it reads.
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

    /// The gradient of the residual stream: the one that comes, the one that goes, and the graph's sum of both.
    fn gradients(&self) -> usize {
        3 * self.hidden
    }
}
