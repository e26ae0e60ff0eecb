//! The head's operation as a composition of candle operations.

use std::sync::Arc;

use candle_core::{D, Result, Tensor};
use kernels::arguments::Columns;

use super::{BothLogProbs, Target, TokenLogProbs, check, chunk_rows};
use crate::ops::linear::{Linear, Projection};
use crate::ops::param::Param;
use crate::ops::recompute::recompute;

/// [`super::token_log_probs`] as a composition of candle operations. The logits of one chunk are in
/// memory at a time, because a chunk's graph keeps only its hidden rows.
///
/// # Errors
/// As [`super::token_log_probs`].
pub fn composed(
    hidden: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
) -> Result<TokenLogProbs> {
    let results = composed_results(hidden, head, targets, temperature, Columns::Own)?;
    TokenLogProbs::split(&results)
}

/// [`super::both_log_probs`] as a composition of candle operations.
///
/// # Errors
/// As [`super::token_log_probs`].
pub fn composed_both(
    hidden: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
) -> Result<BothLogProbs> {
    let results = composed_results(hidden, head, targets, temperature, Columns::OwnAndWhole)?;
    BothLogProbs::split(&results)
}

fn composed_results(
    hidden: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
    results: Columns,
) -> Result<Tensor> {
    check(hidden, head, targets)?;
    let chunk = |targets: &[Target]| {
        let rows = Tensor::from_iter(targets.iter().map(|t| t.row as u32), hidden.device())?;
        let (head, targets) = (head.clone(), targets.to_vec());
        let run = move |rows: &Tensor| composed_chunk(rows, &head, &targets, temperature, results);
        recompute(&hidden.index_select(&rows, 0)?, Arc::new(run))
    };
    let chunks: Vec<Tensor> = targets
        .chunks(chunk_rows(head.dims()[0]))
        .map(chunk)
        .collect::<Result<_>>()?;
    Tensor::cat(&chunks, 0)
}

/// The results of each target of a chunk, given its hidden row: `[targets, columns]`.
fn composed_chunk(
    rows: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
    results: Columns,
) -> Result<Tensor> {
    let device = rows.device();
    let tokens = Tensor::from_iter(targets.iter().map(|t| t.token), device)?.unsqueeze(1)?;
    let layer = Linear::new(vec![Projection::new(head.clone(), None)])?;
    let whole = (layer.composed(rows)? * f64::from(1.0 / temperature))?;
    let logits = match kept_mask(targets, head.dims()[0]) {
        Some(mask) => (&whole + Tensor::from_vec(mask, (targets.len(), head.dims()[0]), device)?)?,
        None => whole.clone(),
    };
    let log_p = log_softmax(&logits)?;
    let entropy = (log_p.exp()? * &log_p)?.sum(D::Minus1)?.neg()?;
    let of_tokens = |log_p: &Tensor| log_p.gather(&tokens, 1)?.squeeze(1);
    match results {
        Columns::Own => Tensor::stack(&[of_tokens(&log_p)?, entropy], 1),
        Columns::OwnAndWhole => {
            let whole = of_tokens(&log_softmax(&whole)?)?;
            Tensor::stack(&[of_tokens(&log_p)?, entropy, whole], 1)
        }
    }
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let normaliser = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&normaliser)
}

/// A mask to add to logits, 0 for kept tokens and −1e30 for others; `None` if no distribution was
/// cut.
fn kept_mask(targets: &[Target], vocabulary: usize) -> Option<Vec<f32>> {
    const CUT: f32 = -1e30;
    targets.iter().any(|t| t.kept.is_some()).then(|| {
        let mut mask = vec![0f32; targets.len() * vocabulary];
        for (row, target) in mask.chunks_exact_mut(vocabulary).zip(targets) {
            let Some(kept) = &target.kept else { continue };
            row.fill(CUT);
            kept.iter().for_each(|&id| row[id as usize] = 0.0);
        }
        mask
    })
}
