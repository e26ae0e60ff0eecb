//! Causal grouped-query attention (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023), optionally in
//! a sliding window (Jiang et al. 2023, §2).
//!
//! Rows of `qkv` hold `q | k | v`, `(query_heads + 2·kv_heads) · head_dim` columns. In training,
//! sequences are packed one after the other and attention never crosses the border of a segment
//! ([`attend`]). In generation, keys and values come from a block-paged cache ([`cached`]), with
//! the same bits.

pub mod cached;
mod composed;
mod gpu;

use std::sync::{Arc, Mutex, OnceLock};

use candle_core::{Result, Tensor, bail};
use kernels::attention::{Attention, Segments};
use kernels::device::Array;
use kernels::device::attention::packed::PackedSegments;
use kernels::host::attention as host;

use super::backend::Backend;
use super::operation::{Described, Link, Operation, OperationKind, apply};
use super::place::{Host, MaybeOwned};
pub use composed::attend as composed;

/// Sequences that are packed one after the other, as the attention of all layers reads them.
#[derive(Clone)]
pub struct PackedTokens {
    segments: Segments,
    /// The same on a GPU, made when a layer first needs it.
    on_device: Arc<OnceLock<PackedSegments>>,
}

impl PackedTokens {
    /// The tokens of these segments.
    pub fn new(segments: &Segments) -> Self {
        Self {
            segments: segments.clone(),
            on_device: Arc::default(),
        }
    }

    /// The segments.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }
}

/// Attention within each segment: `[tokens, columns]` → `[tokens, query_heads · head_dim]`.
///
/// # Errors
/// If the shapes disagree or the device fails.
pub fn attend(
    qkv: &Tensor,
    segments: &Segments,
    spec: Attention,
    backend: &Backend,
) -> Result<Tensor> {
    check(spec, qkv, segments)?;
    let tokens = PackedTokens::new(segments);
    apply(qkv, PackedAttention::new(&tokens, spec), backend)
}

/// [`attend`] as a link of a chain.
pub fn link(tokens: &PackedTokens, spec: Attention) -> Link {
    Arc::new(PackedAttention::new(tokens, spec))
}

struct PackedAttention {
    spec: Attention,
    tokens: PackedTokens,
    /// Log-sum-exps of the scores on a GPU, from the forward pass for the backward pass.
    sums: Mutex<Option<Array<f32>>>,
}

impl PackedAttention {
    fn new(tokens: &PackedTokens, spec: Attention) -> Self {
        spec.check_heads();
        Self {
            spec,
            tokens: tokens.clone(),
            sums: Mutex::default(),
        }
    }
}

fn check(spec: Attention, qkv: &Tensor, segments: &Segments) -> Result<()> {
    let needed = [segments.tokens(), spec.columns()];
    if qkv.dims() != needed {
        bail!(
            "attention: input {:?} where {needed:?} is needed",
            qkv.dims()
        );
    }
    Ok(())
}

impl Described for PackedAttention {
    fn names(&self) -> [&'static str; 2] {
        ["attention", "attention backward"]
    }

    fn kind(&self) -> OperationKind {
        OperationKind::Attention(self.spec.outputs())
    }
}

impl Operation<Host> for PackedAttention {
    fn forward(&self, qkv: &[f32], _rows: usize) -> Result<Vec<f32>> {
        Ok(host::forward(self.spec, &self.tokens.segments, qkv))
    }

    fn backward(
        &self,
        qkv: &[f32],
        out: &[f32],
        grad: MaybeOwned<Host>,
        _: usize,
    ) -> Result<Vec<f32>> {
        let grad = host::backward(self.spec, &self.tokens.segments, qkv, out, grad.view());
        Ok(grad)
    }
}
