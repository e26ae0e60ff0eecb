//! Log-probability and entropy of chosen tokens, straight from hidden states and the head's weight.
//!
//! The logits of all tokens are never held: rows are walked in chunks, and the backward pass recomputes each chunk, unless
//! they are so few that they may be held ([`HELD`]). A row's statistics come from [`rollout::row`], the kernel that the sampler uses,
//! so a token's log-prob here is the recorded one bit for bit. Where sampling was cut (top-k, top-p, min-p, a mask), the
//! distribution is renormalised over the kept set, by which the ratio of two policies is taken. What compares a policy with another
//! one, such as the KL to the reference, needs log-probs over the whole vocabulary: [`both_log_probs`] gives the two from one row of
//! logits.
//!
//! With z = logits / temperature, p = softmax(z): ∂log p(t)/∂z = onehot(t) − p, and ∂H/∂z = −p ∘ (log p + H).

mod composed;
mod fused;

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::param::Param;
use fused::fused;

pub use composed::{composed, composed_both};

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

/// Log-probs of [`both_log_probs`]; differentiable.
pub struct BothLogProbs {
    /// Of the distributions that tokens were drawn from.
    pub kept: TokenLogProbs,
    /// log p(token) over the whole vocabulary: `[targets]`.
    pub whole: Tensor,
}

/// Column `index` of the operation's results.
fn column(results: &Tensor, index: usize) -> Result<Tensor> {
    results.narrow(1, index, 1)?.squeeze(1)
}

impl TokenLogProbs {
    /// From `[targets, 2 or more]`.
    fn split(results: &Tensor) -> Result<Self> {
        Ok(Self {
            log_probs: column(results, 0)?,
            entropy: column(results, 1)?,
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
    if !head.backend().has_kernels() {
        return composed(hidden, head, targets, temperature);
    }
    TokenLogProbs::split(&fused(hidden, head, targets, temperature, Results::Kept)?)
}

/// Log-probs of [`token_log_probs`], with each token's log-prob over the whole vocabulary beside. Where no target has a kept set, the two are
/// one tensor and cost nothing more.
///
/// # Errors
/// The errors of [`token_log_probs`].
pub fn both_log_probs(
    hidden: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
) -> Result<BothLogProbs> {
    if targets.iter().all(|t| t.kept.is_none()) {
        let kept = token_log_probs(hidden, head, targets, temperature)?;
        let whole = kept.log_probs.clone();
        return Ok(BothLogProbs { kept, whole });
    }
    if !head.backend().has_kernels() {
        return composed_both(hidden, head, targets, temperature);
    }
    BothLogProbs::split(&fused(hidden, head, targets, temperature, Results::Both)?)
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

impl BothLogProbs {
    /// From `[targets, 3]`.
    fn split(results: &Tensor) -> Result<Self> {
        Ok(Self {
            kept: TokenLogProbs::split(results)?,
            whole: column(results, 2)?,
        })
    }
}

/// Columns of the operation's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Results {
    /// Log-prob and entropy of the distribution that the token was drawn from.
    Kept,
    /// These, and the log-prob over the whole vocabulary.
    Both,
}

impl Results {
    fn columns(self) -> usize {
        match self {
            Self::Kept => 2,
            Self::Both => 3,
        }
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
