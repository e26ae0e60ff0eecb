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

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use kernels::attention::{Attention, Segments};
use kernels::host::attention as host;

use super::backend::Backend;
use super::operation::{Described, Link, Operation, OperationKind, apply};
use super::place::{Host, MaybeOwned};
pub use composed::attend as composed;

/// Attention within each segment, on the CPU: `[tokens, columns]` → `[tokens, query_heads ·
/// head_dim]`.
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
    apply(qkv, PackedAttention::new(segments, spec), backend)
}

/// [`attend`] as a link of a chain.
pub fn link(segments: &Segments, spec: Attention) -> Link {
    Arc::new(PackedAttention::new(segments, spec))
}

struct PackedAttention {
    spec: Attention,
    segments: Segments,
}

impl PackedAttention {
    fn new(segments: &Segments, spec: Attention) -> Self {
        spec.check_heads();
        Self {
            spec,
            segments: segments.clone(),
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
        Ok(host::forward(self.spec, &self.segments, qkv))
    }

    fn backward(
        &self,
        qkv: &[f32],
        out: &[f32],
        grad: MaybeOwned<Host>,
        _: usize,
    ) -> Result<Vec<f32>> {
        let grad = host::backward(self.spec, &self.segments, qkv, out, grad.view());
        Ok(grad)
    }
}
