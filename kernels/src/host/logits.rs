//! Log-probabilities and entropies of rows of logits, and their gradients.
//!
//! Logits x are taken at an inverse temperature t. With z = t·x and p = softmax(z),
//! ∂log p(token)/∂z = onehot(token) − p, and ∂H/∂z = −p ∘ (log p + H).

use std::borrow::Cow;

use multiversion::multiversion;

use super::pool;
use super::row::{self, RowStats};
use crate::arguments::Columns;

/// The token of a row of logits whose log-probability is computed.
#[derive(Clone, Copy, Debug)]
pub struct RowTarget<'a> {
    /// Id of the token.
    pub token: u32,
    /// Ascending ids that sampling kept, if it cut the distribution; they include the token.
    pub kept: Option<&'a [u32]>,
}

/// A row's distribution: its logits (those of the kept set, if there is one) and their statistics.
struct Distribution<'a> {
    scores: Cow<'a, [f32]>,
    stats: RowStats,
}

/// Writes the results of each target, `[targets, columns]`, to `out`, from logits `[targets,
/// vocabulary]`.
///
/// # Panics
/// If lengths do not fit, or an id lies outside the vocabulary: bugs of the caller.
pub fn forward(
    logits: &[f32],
    targets: &[RowTarget],
    columns: Columns,
    inv_temperature: f32,
    out: &mut [f32],
) {
    let vocabulary = check(logits, targets, columns, out);
    let inputs = logits.chunks_exact(vocabulary).zip(targets);
    let rows = out.chunks_exact_mut(columns.count()).zip(inputs);
    pool::for_each(rows, |(out, (logits, target))| {
        target.forward(logits, inv_temperature, out)
    });
}

/// Replaces the logits by their gradient, given the gradients of the results of [`forward`].
///
/// # Panics
/// The panics of [`forward`].
pub fn backward(
    logits: &mut [f32],
    targets: &[RowTarget],
    gradients: &[f32],
    columns: Columns,
    inv_temperature: f32,
) {
    let vocabulary = check(logits, targets, columns, gradients);
    let inputs = targets.iter().zip(gradients.chunks_exact(columns.count()));
    let rows = logits.chunks_exact_mut(vocabulary).zip(inputs);
    pool::for_each(rows, |(logits, (target, gradients))| {
        target.backward(logits, inv_temperature, gradients)
    });
}

/// Checks that there are a row of logits and a row of results for each target, and returns the size
/// of the vocabulary.
fn check(logits: &[f32], targets: &[RowTarget], columns: Columns, results: &[f32]) -> usize {
    let vocabulary = (logits.len() / targets.len().max(1)).max(1);
    let found = [logits.len(), results.len()];
    let needed = [vocabulary, columns.count()].map(|width| targets.len() * width);
    assert_eq!(found, needed, "logits and results of targets");
    vocabulary
}

impl RowTarget<'_> {
    fn distribution<'l>(&self, logits: &'l [f32], t: f32) -> Distribution<'l> {
        let scores: Cow<[f32]> = match self.kept {
            Some(kept) => Cow::Owned(row::gather(logits, kept)),
            None => Cow::Borrowed(logits),
        };
        let stats = row::stats(&scores, t);
        Distribution { scores, stats }
    }

    /// Writes the results of one row to `out`.
    fn forward(&self, logits: &[f32], t: f32, out: &mut [f32]) {
        let d = self.distribution(logits, t);
        out[0] = row::log_prob(logits, t, &d.stats, self.token);
        out[1] = row::entropy(&d.scores, t, &d.stats);
        if let Some(whole) = out.get_mut(2) {
            let stats = match self.kept {
                None => d.stats,
                Some(_) => row::stats(logits, t),
            };
            *whole = row::log_prob(logits, t, &stats, self.token);
        }
    }

    /// Replaces a row of logits by its gradient, given the gradients of its results.
    fn backward(&self, logits: &mut [f32], t: f32, gradients: &[f32]) {
        let (own, entropy) = (gradients[0], gradients[1]);
        match (self.kept, gradients.get(2)) {
            (None, None) => self.backward_whole(logits, t, own, entropy),
            // Both log-probs of the row are the same number.
            (None, Some(&whole)) => self.backward_whole(logits, t, own + whole, entropy),
            (Some(kept), Some(&whole)) if whole != 0.0 => {
                let of_kept = gradient_of_kept(logits, kept, t, gradients);
                self.backward_whole(logits, t, whole, 0.0);
                add_at(logits, kept, &of_kept);
                logits[self.token as usize] += t * own;
            }
            (Some(kept), _) => self.backward_kept(logits, kept, t, gradients),
        }
    }

    /// [`Self::backward`] over the whole vocabulary.
    fn backward_whole(&self, logits: &mut [f32], t: f32, log_prob: f32, entropy: f32) {
        differentiate(logits, t, log_prob, entropy);
        logits[self.token as usize] += t * log_prob;
    }

    /// [`Self::backward`] over a kept set; the gradient of the other logits is zero.
    fn backward_kept(&self, logits: &mut [f32], kept: &[u32], t: f32, gradients: &[f32]) {
        let of_kept = gradient_of_kept(logits, kept, t, gradients);
        let mut end = 0;
        for (ids, within) in row::runs(kept) {
            logits[end..ids.start].fill(0.0);
            end = ids.end;
            logits[ids].copy_from_slice(&of_kept[within]);
        }
        logits[end..].fill(0.0);
        logits[self.token as usize] += t * gradients[0];
    }
}

/// The gradient of a kept set's logits without the token's one-hot part.
fn gradient_of_kept(logits: &[f32], kept: &[u32], t: f32, gradients: &[f32]) -> Vec<f32> {
    let mut scores = row::gather(logits, kept);
    differentiate(&mut scores, t, gradients[0], gradients[1]);
    scores
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
