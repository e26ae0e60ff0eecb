//! Log-probability and entropy of chosen tokens, straight from hidden states and the head's weight.
//!
//! The logits of all tokens are never held: rows are walked in chunks, and the backward pass recomputes each chunk, unless
//! they are so few that they may be held ([`HELD`]). A row's statistics come from [`rollout::row`], the kernel that the sampler uses,
//! so a token's log-prob here is the recorded one bit for bit. Where sampling was cut (top-k, top-p, min-p, a mask), the
//! distribution is renormalised over the kept set.
//!
//! With z = logits / temperature, p = softmax(z): ∂log p(t)/∂z = onehot(t) − p, and ∂H/∂z = −p ∘ (log p + H).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rollout::row::{self, RowStats};

use super::dispatch::has_kernels;
use super::param::Param;
use super::pool;
use super::product::{Matrix, Weight, add_multiplied, multiplied, product, with_factor};
use super::profile;
use super::recompute::recompute;
use super::storage;

/// Logits that are held at once, unless fewer rows than [`LEAST_ROWS`] would be left.
const CHUNK: usize = 1 << 22;
/// Rows for which a pass over the head's weight pays.
const LEAST_ROWS: usize = 384;

/// Logits that are held for the backward pass, 32 MiB: the whole of a small model's, and next to nothing of a large one's.
const HELD: usize = 1 << 23;

/// One token whose log-probability is asked for.
#[derive(Clone, Debug)]
pub struct Target {
    /// Row of the hidden states that predicts it.
    pub row: usize,
    /// The token.
    pub token: u32,
    /// The ascending ids that sampling kept, when it cut the distribution; the token is among them.
    pub kept: Option<Arc<[u32]>>,
}

impl Target {
    /// A token under the whole distribution.
    pub fn whole(row: usize, token: u32) -> Self {
        Self {
            row,
            token,
            kept: None,
        }
    }
}

/// Rows whose logits are held at once.
pub fn chunk_rows(vocabulary: usize) -> usize {
    (CHUNK / vocabulary.max(1)).max(LEAST_ROWS)
}

/// Most logits that [`token_log_probs`] has in memory at once where its backward pass is to come: those that are held for it, and a
/// chunk that finds no room.
pub fn most_logits(targets: usize, vocabulary: usize) -> usize {
    let rows = chunk_rows(vocabulary);
    let (mut held, mut most) = (0, 0);
    for first in (0..targets).step_by(rows) {
        let chunk = rows.min(targets - first) * vocabulary;
        most = most.max(held + chunk);
        if held + chunk <= HELD {
            held += chunk;
        }
    }
    most
}

/// What [`token_log_probs`] returns; both `[targets]` and differentiable.
pub struct TokenLogProbs {
    /// log p(token)
    pub log_probs: Tensor,
    /// Entropy of the distribution, in nats.
    pub entropy: Tensor,
}

impl TokenLogProbs {
    /// From `[targets, 2]`.
    fn split(both: &Tensor) -> Result<Self> {
        Ok(Self {
            log_probs: both.narrow(1, 0, 1)?.squeeze(1)?,
            entropy: both.narrow(1, 1, 1)?.squeeze(1)?,
        })
    }

    /// The same, if every row of logits was finite: one that was not has an entropy of NaN.
    ///
    /// # Errors
    /// If one was not, with the target whose row it is.
    pub fn finite(self) -> Result<Self> {
        let entropy = self.entropy.to_vec1::<f32>()?;
        match entropy.iter().position(|h| !h.is_finite()) {
            None => Ok(self),
            Some(target) => bail!(
                "the logits of target {target} are not finite: the model's weights are damaged, or its training diverged"
            ),
        }
    }
}

/// Log-probabilities and entropies of `targets` given `hidden` (`[tokens, width]`) and the head `[vocabulary, width]`, at
/// `temperature` > 0.
///
/// A row of logits that is not finite gives NaN: training meets it in the loss, and skips the step. Where results leave the engine,
/// ask [`TokenLogProbs::finite`].
///
/// # Errors
/// If shapes disagree or a target lies outside.
pub fn token_log_probs(
    hidden: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
) -> Result<TokenLogProbs> {
    check(hidden, head, targets)?;
    if !has_kernels(hidden.device()) {
        return composed(hidden, head, targets, temperature);
    }
    let op = Fused {
        head: head.clone(),
        targets: targets.into(),
        inv_temperature: 1.0 / temperature,
        room: if hidden.track_op() { HELD } else { 0 },
        held: Mutex::default(),
    };
    TokenLogProbs::split(&hidden.contiguous()?.apply_op1(op)?)
}

fn check(hidden: &Tensor, head: &Param, targets: &[Target]) -> Result<()> {
    let ((rows, width), (vocabulary, inputs)) = (hidden.dims2()?, head.value().dims2()?);
    if width != inputs {
        bail!(
            "{}: hidden states {:?} where [tokens, {inputs}] is needed",
            head.name(),
            hidden.dims()
        );
    }
    let outside = |t: &&Target| t.row >= rows || t.token as usize >= vocabulary;
    if let Some(t) = targets.iter().find(outside) {
        bail!(
            "{}: target token {} at row {} of {rows} rows and {vocabulary} tokens",
            head.name(),
            t.token,
            t.row
        );
    }
    let lost = |t: &&Target| {
        t.kept.as_ref().is_some_and(|k| {
            // They ascend.
            k.binary_search(&t.token).is_err()
                || k.last().is_some_and(|&id| id as usize >= vocabulary)
        })
    };
    if let Some(t) = targets.iter().find(lost) {
        bail!(
            "{}: token {} is not in the set that sampling kept at row {}",
            head.name(),
            t.token,
            t.row
        );
    }
    Ok(())
}

/// The same as a composition of candle operations. The logits of one chunk live at a time: a chunk's graph holds its hidden rows
/// alone.
///
/// # Errors
/// As [`token_log_probs`].
pub fn composed(
    hidden: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
) -> Result<TokenLogProbs> {
    check(hidden, head, targets)?;
    let chunk = |targets: &[Target]| {
        let rows = Tensor::from_iter(targets.iter().map(|t| t.row as u32), hidden.device())?;
        let (head, targets) = (head.clone(), targets.to_vec());
        let run = move |rows: &Tensor| composed_chunk(rows, &head, &targets, temperature);
        recompute(&hidden.index_select(&rows, 0)?, Arc::new(run))
    };
    let chunks: Vec<Tensor> = targets
        .chunks(chunk_rows(head.dims()[0]))
        .map(chunk)
        .collect::<Result<_>>()?;
    TokenLogProbs::split(&Tensor::cat(&chunks, 0)?)
}

/// Log-probability and entropy of each target, given its hidden row: `[targets, 2]`.
fn composed_chunk(
    rows: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
) -> Result<Tensor> {
    let device = rows.device();
    let tokens = Tensor::from_iter(targets.iter().map(|t| t.token), device)?.unsqueeze(1)?;
    let layer =
        super::linear::Linear::new(vec![super::linear::Projection::new(head.clone(), None)])?;
    let logits = (layer.composed(rows)? * f64::from(1.0 / temperature))?;
    let logits = match kept_mask(targets, head.dims()[0]) {
        Some(mask) => (logits + Tensor::from_vec(mask, (targets.len(), head.dims()[0]), device)?)?,
        None => logits,
    };
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let normaliser = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let log_p = shifted.broadcast_sub(&normaliser)?;
    let entropy = (log_p.exp()? * &log_p)?.sum(D::Minus1)?.neg()?;
    Tensor::stack(&[log_p.gather(&tokens, 1)?.squeeze(1)?, entropy], 1)
}

/// 0 for kept tokens and a number that no softmax notices for the others; `None` when nothing was cut.
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

struct Fused {
    head: Arc<Param>,
    targets: Box<[Target]>,
    inv_temperature: f32,
    /// How many logits may be held; none where no backward pass will come.
    room: usize,
    /// Logits by the number of their chunk, from the forward pass to the backward pass.
    held: Mutex<BTreeMap<usize, Vec<f32>>>,
}

/// One row's distribution: its scores (of the kept set alone, where there is one) and their statistics.
struct Distribution<'a> {
    scores: Cow<'a, [f32]>,
    stats: RowStats,
}

impl Fused {
    /// Vocabulary and width of the head.
    fn shape(&self) -> (usize, usize) {
        (self.head.dims()[0], self.head.dims()[1])
    }

    fn distribution<'a>(&self, logits: &'a [f32], target: &Target) -> Distribution<'a> {
        let scores: Cow<[f32]> = match &target.kept {
            Some(kept) => Cow::Owned(row::gather(logits, kept)),
            None => Cow::Borrowed(logits),
        };
        let stats = row::stats(&scores, self.inv_temperature);
        Distribution { scores, stats }
    }

    /// log p and entropy of one row.
    fn forward_row(&self, logits: &[f32], target: &Target) -> [f32; 2] {
        let d = self.distribution(logits, target);
        let log_prob = row::log_prob(logits, self.inv_temperature, &d.stats, target.token);
        [
            log_prob,
            row::entropy(&d.scores, self.inv_temperature, &d.stats),
        ]
    }

    /// Turns a row of logits into its gradient, given that of log p: −g·p, and g more at the token.
    fn backward_log_prob(&self, logits: &mut [f32], target: &Target, grad: f32) {
        let t = self.inv_temperature;
        match &target.kept {
            None => {
                let sum = row::weights_in_place(logits, t).sum;
                scale(logits, -t * grad / sum);
            }
            Some(kept) => {
                let mut weights = row::gather(logits, kept);
                let sum = row::weights_in_place(&mut weights, t).sum;
                scale(&mut weights, -t * grad / sum);
                let mut end = 0;
                for (ids, within) in row::runs(kept) {
                    logits[end..ids.start].fill(0.0);
                    end = ids.end;
                    logits[ids].copy_from_slice(&weights[within]);
                }
                logits[end..].fill(0.0);
            }
        }
        logits[target.token as usize] += t * grad;
    }

    /// Turns a row of logits into its gradient, given those of log p and entropy.
    fn backward_row(&self, logits: &mut [f32], target: &Target, grad: &[f32]) {
        if grad[1] == 0.0 {
            return self.backward_log_prob(logits, target, grad[0]);
        }
        let t = self.inv_temperature;
        let (p, d_scores) = {
            let d = self.distribution(logits, target);
            let mut p = vec![0f32; d.scores.len()];
            row::softmax(&d.scores, t, &d.stats, &mut p);
            let entropy = row::entropy(&d.scores, t, &d.stats);
            (p, gradient_of_scores(&d, t, entropy, grad))
        };
        let combine = |p: f32, extra: f32| t * p * extra;
        match &target.kept {
            None => logits
                .iter_mut()
                .zip(p.iter().zip(&d_scores))
                .for_each(|(l, (&p, &e))| *l = combine(p, e)),
            Some(kept) => {
                logits.fill(0.0);
                kept.iter()
                    .zip(p.iter().zip(&d_scores))
                    .for_each(|(&id, (&p, &e))| logits[id as usize] = combine(p, e));
            }
        }
        logits[target.token as usize] += t * grad[0];
    }

    /// The hidden rows of a chunk of targets: `[targets, width]`.
    fn rows<'a>(&self, hidden: &'a [f32], targets: &[Target]) -> Cow<'a, [f32]> {
        let (_, width) = self.shape();
        let first = targets.first().map_or(0, |t| t.row);
        if targets.iter().enumerate().all(|(i, t)| t.row == first + i) {
            return Cow::Borrowed(&hidden[first * width..][..targets.len() * width]);
        }
        let rows: Vec<u32> = targets.iter().map(|t| t.row as u32).collect();
        Cow::Owned(storage::gather(hidden, width, &rows))
    }

    /// Their logits: `[targets, vocabulary]`.
    fn logits(&self, rows: &[f32], weight: Weight) -> Vec<f32> {
        let (_, width) = self.shape();
        product(
            Matrix::new(rows, rows.len() / width, width, width),
            &[weight],
        )
    }

    /// Holds a chunk's logits if there is room for them.
    fn hold(&self, chunk: usize, logits: Vec<f32>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count: usize = held.values().map(Vec::len).sum();
        if count + logits.len() <= self.room {
            held.insert(chunk, logits);
        }
    }

    /// A chunk's logits, if they are held.
    fn take_held(&self, chunk: usize) -> Option<Vec<f32>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&chunk)
    }

    fn backward_chunk(
        &self,
        hidden: &[f32],
        targets: &[Target],
        grads: &[f32],
        weight: Weight,
        held: Option<Vec<f32>>,
        dh: &mut [f32],
    ) -> Result<()> {
        let (vocabulary, width) = self.shape();
        let rows = self.rows(hidden, targets);
        let mut logits = held.unwrap_or_else(|| self.logits(&rows, weight));
        let inputs = targets.iter().zip(grads.chunks_exact(2));
        let rows_of_logits = logits.chunks_exact_mut(vocabulary).zip(inputs);
        pool::for_each(rows_of_logits, |(logits, (target, grad))| {
            self.backward_row(logits, target, grad)
        });
        let dlogits = Matrix::new(&logits, targets.len(), vocabulary, vocabulary);
        let part = storage::read(self.head.value(), |w| {
            let head = Matrix::new(w, vocabulary, width, width);
            multiplied(dlogits, head)
        })?;
        for (target, part) in targets.iter().zip(part.chunks_exact(width)) {
            dh[target.row * width..][..width]
                .iter_mut()
                .zip(part)
                .for_each(|(d, p)| *d += p);
        }
        let rows = Matrix::new(&rows, targets.len(), width, width);
        self.head.accumulate_with(|dw| {
            with_factor(rows, |rows| add_multiplied(dlogits.t(), rows, dw));
        })
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn scale(row: &mut [f32], factor: f32) {
    for x in row {
        *x *= factor;
    }
}

/// The factor of p in ∂(g₀·log p(t) + g₁·H)/∂z, less the one-hot part: −g₀ − g₁·(log p + H).
fn gradient_of_scores(
    d: &Distribution,
    inv_temperature: f32,
    entropy: f32,
    grad: &[f32],
) -> Vec<f32> {
    let lse = d.stats.log_sum_exp();
    // A token of probability zero has log p = −∞; its share is zero, so any finite number will do.
    let log_p = |&x: &f32| x.mul_add(inv_temperature, -lse).max(-1e4);
    d.scores
        .iter()
        .map(|x| -grad[0] - grad[1] * (log_p(x) + entropy))
        .collect()
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "token_log_probs"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let span = profile::span("head");
        let (hidden, operand) = (storage::slice(s, l)?, self.head.operand()?);
        let (vocabulary, _) = self.shape();
        let chunk = chunk_rows(vocabulary);
        span.wrote(self.targets.len() * self.shape().0);
        let mut out = vec![0f32; self.targets.len() * 2];
        let chunks = self.targets.chunks(chunk).zip(out.chunks_mut(2 * chunk));
        for (i, (targets, out)) in chunks.enumerate() {
            let logits = self.logits(&self.rows(hidden, targets), operand.weight());
            let inputs = logits.chunks_exact(vocabulary).zip(targets);
            let rows = out.chunks_exact_mut(2).zip(inputs);
            pool::for_each(rows, |(out, (logits, target))| {
                out.copy_from_slice(&self.forward_row(logits, target))
            });
            self.hold(i, logits);
        }
        Ok((CpuStorage::F32(out), Shape::from((self.targets.len(), 2))))
    }

    fn bwd(&self, hidden: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let span = profile::span("head backward");
        let (grad, operand) = (grad.contiguous()?, self.head.operand()?);
        let chunk = chunk_rows(self.shape().0);
        span.wrote(self.targets.len() * self.shape().0);
        let mut dh = vec![0f32; hidden.elem_count()];
        storage::read(hidden, |hidden| {
            storage::read(&grad, |grad| {
                let chunks = self.targets.chunks(chunk).zip(grad.chunks(2 * chunk));
                for (i, (targets, grads)) in chunks.enumerate() {
                    let (weight, held) = (operand.weight(), self.take_held(i));
                    self.backward_chunk(hidden, targets, grads, weight, held, &mut dh)?;
                }
                Ok::<_, candle_core::Error>(())
            })
        })???;
        Ok(Some(Tensor::from_vec(dh, hidden.dims(), hidden.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: chunks of 384 rows of 20 000 logits are 7.68 million, of which one finds room among 8.39 million.
    #[test]
    fn most_logits_are_those_held_and_a_chunk() {
        assert_eq!(chunk_rows(20_000), 384);
        assert_eq!(most_logits(1000, 20_000), 2 * 384 * 20_000);
        // The rest of a batch still finds its own.
        assert_eq!(most_logits(384 + 30, 20_000), (384 + 30) * 20_000);
        // All of a small vocabulary's are held, and none of a large one's.
        assert_eq!(most_logits(4096, 2048), 4096 * 2048);
        assert_eq!(most_logits(4096, 128_256), 384 * 128_256);
        assert_eq!(most_logits(0, 2048), 0);
    }
}
