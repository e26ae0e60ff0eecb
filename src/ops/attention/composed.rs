//! Attention as a composition of candle operations: for devices without kernels of this crate, and
//! as the oracle of the tests.

use candle_core::{D, Device, Result, Tensor};
use kernels::attention::{Attention, Segments};

/// [`super::attend`] on any device.
///
/// # Errors
/// As [`super::attend`].
pub fn attend(qkv: &Tensor, segments: &Segments, spec: Attention) -> Result<Tensor> {
    super::check(spec, qkv, segments)?;
    let parts: Vec<Tensor> = segments
        .iter()
        .filter(|rows| !rows.is_empty())
        .map(|rows| {
            let part = qkv.narrow(0, rows.start, rows.len())?;
            let heads = |first, n: usize| {
                part.narrow(1, first, n * spec.head_dim)?
                    .reshape((rows.len(), n, spec.head_dim))
            };
            let queries = heads(0, spec.query_heads)?;
            let keys = heads(spec.key_column(0), spec.kv_heads)?;
            attend_dense(
                &queries,
                &keys,
                &heads(spec.value_column(0), spec.kv_heads)?,
                0,
                spec,
            )
        })
        .collect::<Result<_>>()?;
    Tensor::cat(&parts, 0)
}

/// Queries `[n, query_heads, d]` at positions `past..past+n` against keys and values `[past + n,
/// kv_heads, d]`.
pub(super) fn attend_dense(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    past: usize,
    spec: Attention,
) -> Result<Tensor> {
    let (n, total) = (queries.dim(0)?, keys.dim(0)?);
    let spread = |x: &Tensor| {
        let shape = (spec.kv_heads, spec.group(), total, spec.head_dim);
        x.transpose(0, 1)?
            .unsqueeze(1)?
            .broadcast_as(shape)?
            .reshape((spec.query_heads, total, spec.head_dim))
    };
    let queries = queries.transpose(0, 1)?.contiguous()?;
    let scores = (queries.matmul(&spread(keys)?.t()?.contiguous()?)? * f64::from(spec.scale))?;
    let scores = scores.broadcast_add(&mask(n, total, past, spec, scores.device())?)?;
    let weights = scores
        .broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?
        .exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    let mixed = weights.matmul(&spread(values)?.contiguous()?)?;
    mixed.transpose(0, 1)?.reshape((n, spec.outputs()))
}

/// 0 where a query sees a key, −∞ elsewhere: `[n, total]`.
fn mask(n: usize, total: usize, past: usize, spec: Attention, device: &Device) -> Result<Tensor> {
    let sees = |i: usize, j: usize| j <= past + i && j >= spec.first_key(past + i);
    let cell = |at: usize| {
        if sees(at / total, at % total) {
            0f32
        } else {
            f32::NEG_INFINITY
        }
    };
    Tensor::from_iter((0..n * total).map(cell), device)?.reshape((n, total))
}
