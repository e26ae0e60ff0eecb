//! The head's operation on the CPU: logits in chunks of rows, replaced in place by their gradients
//! in the backward pass.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use kernels::host::pool;
use kernels::host::product::{Matrix, Weight, multiplied, product, with_factor};
use kernels::host::row::{self, RowStats};
use kernels::host::rows;
use multiversion::multiversion;

use super::{HELD, HeadResults, Target, check, chunk_rows};
use crate::ops::param::Param;
use crate::ops::profile;
use crate::ops::storage;

/// The results of each target: `[targets, columns]`.
pub(super) fn fused(
    hidden: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
    results: HeadResults,
) -> Result<Tensor> {
    check(hidden, head, targets)?;
    let op = HeadOperation {
        head: head.clone(),
        targets: targets.into(),
        inv_temperature: 1.0 / temperature,
        results,
        room: if hidden.track_op() { HELD } else { 0 },
        held: Mutex::default(),
    };
    hidden.contiguous()?.apply_op1(op)
}

struct HeadOperation {
    head: Arc<Param>,
    targets: Box<[Target]>,
    inv_temperature: f32,
    results: HeadResults,
    /// Number of logits that may be kept; 0 without a backward pass.
    room: usize,
    /// Logits kept for the backward pass, by the number of their chunk.
    held: Mutex<BTreeMap<usize, Vec<f32>>>,
}

/// A row's distribution: its logits (those of the kept set, if there is one) and their statistics.
struct Distribution<'a> {
    scores: Cow<'a, [f32]>,
    stats: RowStats,
}

impl HeadOperation {
    /// Vocabulary size and width of the head.
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

    /// Writes the results of one row to `out`.
    fn forward_row(&self, logits: &[f32], target: &Target, out: &mut [f32]) {
        let (t, token) = (self.inv_temperature, target.token);
        let d = self.distribution(logits, target);
        out[0] = row::log_prob(logits, t, &d.stats, token);
        out[1] = row::entropy(&d.scores, t, &d.stats);
        if let Some(whole) = out.get_mut(2) {
            let stats = match target.kept {
                None => d.stats,
                Some(_) => row::stats(logits, t),
            };
            *whole = row::log_prob(logits, t, &stats, token);
        }
    }

    /// Replaces a row of logits by its gradient, given the gradients of its results.
    fn backward_row(&self, logits: &mut [f32], target: &Target, grad: &[f32]) {
        let (own, entropy) = (grad[0], grad[1]);
        match (&target.kept, grad.get(2)) {
            (None, None) => self.backward_whole(logits, target, own, entropy),
            // Both log-probs of the row are the same number.
            (None, Some(&whole)) => self.backward_whole(logits, target, own + whole, entropy),
            (Some(kept), Some(&whole)) if whole != 0.0 => {
                let of_kept = self.gradient_of_kept(logits, kept, grad);
                self.backward_whole(logits, target, whole, 0.0);
                add_at(logits, kept, &of_kept);
                logits[target.token as usize] += self.inv_temperature * own;
            }
            (Some(kept), _) => self.backward_kept(logits, kept, target, grad),
        }
    }

    /// [`Self::backward_row`] over the whole vocabulary.
    fn backward_whole(&self, logits: &mut [f32], target: &Target, log_prob: f32, entropy: f32) {
        let t = self.inv_temperature;
        differentiate(logits, t, log_prob, entropy);
        logits[target.token as usize] += t * log_prob;
    }

    /// [`Self::backward_row`] over a kept set; the gradient of the other logits is zero.
    fn backward_kept(&self, logits: &mut [f32], kept: &[u32], target: &Target, grad: &[f32]) {
        let of_kept = self.gradient_of_kept(logits, kept, grad);
        let mut end = 0;
        for (ids, within) in row::runs(kept) {
            logits[end..ids.start].fill(0.0);
            end = ids.end;
            logits[ids].copy_from_slice(&of_kept[within]);
        }
        logits[end..].fill(0.0);
        logits[target.token as usize] += self.inv_temperature * grad[0];
    }

    /// The gradient of a kept set's logits without the token's one-hot part.
    fn gradient_of_kept(&self, logits: &[f32], kept: &[u32], grad: &[f32]) -> Vec<f32> {
        let mut scores = row::gather(logits, kept);
        differentiate(&mut scores, self.inv_temperature, grad[0], grad[1]);
        scores
    }

    /// The hidden rows of a chunk of targets: `[targets, width]`.
    fn rows<'a>(&self, hidden: &'a [f32], targets: &[Target]) -> Cow<'a, [f32]> {
        let (_, width) = self.shape();
        let first = targets.first().map_or(0, |t| t.row);
        if targets.iter().enumerate().all(|(i, t)| t.row == first + i) {
            return Cow::Borrowed(&hidden[first * width..][..targets.len() * width]);
        }
        let rows: Vec<u32> = targets.iter().map(|t| t.row as u32).collect();
        Cow::Owned(rows::gather(hidden, width, &rows))
    }

    /// The logits of a chunk's hidden rows: `[targets, vocabulary]`.
    fn logits(&self, rows: &[f32], weight: Weight) -> Vec<f32> {
        let (_, width) = self.shape();
        let rows = Matrix::new(rows, rows.len() / width, width, width);
        product(self.head.products(), rows, &[weight])
    }

    /// Keeps a chunk's logits for the backward pass if there is room.
    fn hold(&self, chunk: usize, logits: Vec<f32>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count: usize = held.values().map(Vec::len).sum();
        if count + logits.len() <= self.room {
            held.insert(chunk, logits);
        }
    }

    /// A chunk's logits, if they were kept.
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
        let inputs = targets
            .iter()
            .zip(grads.chunks_exact(self.results.columns()));
        let rows_of_logits = logits.chunks_exact_mut(vocabulary).zip(inputs);
        pool::for_each(rows_of_logits, |(logits, (target, grad))| {
            self.backward_row(logits, target, grad)
        });
        let dlogits = Matrix::new(&logits, targets.len(), vocabulary, vocabulary);
        let part = storage::read(self.head.value(), |w| {
            let head = Matrix::new(w, vocabulary, width, width);
            multiplied(self.head.products(), dlogits, head)
        })?;
        for (target, part) in targets.iter().zip(part.chunks_exact(width)) {
            dh[target.row * width..][..width]
                .iter_mut()
                .zip(part)
                .for_each(|(d, p)| *d += p);
        }
        let rows = Matrix::new(&rows, targets.len(), width, width);
        self.head.accumulate_with(|dw| {
            let kernel = self.head.products();
            with_factor(kernel, rows, |rows| rows.add_to(dlogits.t(), dw));
        })
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn scale(row: &mut [f32], factor: f32) {
    for x in row {
        *x *= factor;
    }
}

/// Adds `values` to the elements of a row at the ids `kept`.
fn add_at(row: &mut [f32], kept: &[u32], values: &[f32]) {
    for (ids, within) in row::runs(kept) {
        let pairs = row[ids].iter_mut().zip(&values[within]);
        pairs.for_each(|(x, value)| *x += value);
    }
}

/// Replaces a distribution's logits x, where z = t·x, by the gradient t·∂(g₀·log p(token) +
/// g₁·H)/∂z without the token's one-hot part: t·p·(−g₀ − g₁·(log p + H)).
fn differentiate(logits: &mut [f32], t: f32, log_prob: f32, entropy: f32) {
    if entropy == 0.0 {
        let sum = row::weights_in_place(logits, t).sum;
        return scale(logits, -t * log_prob / sum);
    }
    let stats = row::stats(logits, t);
    let mut p = vec![0f32; logits.len()];
    row::softmax(logits, t, &stats, &mut p);
    let (h, lse) = (row::entropy(logits, t, &stats), stats.log_sum_exp());
    for (x, p) in logits.iter_mut().zip(p) {
        // A token of probability zero has log p = −∞ and gradient zero: any finite number will do.
        let log_p = x.mul_add(t, -lse).max(-1e4);
        *x = t * p * (-log_prob - entropy * (log_p + h));
    }
}

impl CustomOp1 for HeadOperation {
    fn name(&self) -> &'static str {
        "token_log_probs"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let span = profile::span("head");
        let (hidden, operand) = (storage::slice(s, l)?, self.head.operand()?);
        let (vocabulary, _) = self.shape();
        let chunk = chunk_rows(vocabulary);
        span.wrote(self.targets.len() * self.shape().0);
        let columns = self.results.columns();
        let mut out = vec![0f32; self.targets.len() * columns];
        let outs = out.chunks_mut(columns * chunk);
        let chunks = self.targets.chunks(chunk).zip(outs);
        for (i, (targets, out)) in chunks.enumerate() {
            let logits = self.logits(&self.rows(hidden, targets), operand.weight());
            let inputs = logits.chunks_exact(vocabulary).zip(targets);
            let rows = out.chunks_exact_mut(columns).zip(inputs);
            pool::for_each(rows, |(out, (logits, target))| {
                self.forward_row(logits, target, out)
            });
            self.hold(i, logits);
        }
        let shape = Shape::from((self.targets.len(), columns));
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(&self, hidden: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let span = profile::span("head backward");
        let (grad, operand) = (grad.contiguous()?, self.head.operand()?);
        let chunk = chunk_rows(self.shape().0);
        span.wrote(self.targets.len() * self.shape().0);
        let mut dh = vec![0f32; hidden.elem_count()];
        storage::read(hidden, |hidden| {
            storage::read(&grad, |grad| {
                let grads = grad.chunks(self.results.columns() * chunk);
                let chunks = self.targets.chunks(chunk).zip(grads);
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
