//! Log-probability and entropy of chosen tokens, from hidden states and the head's weight.
//!
//! The logits of all tokens are never in memory at once: they are computed in chunks of rows, and
//! again in the backward pass, except for a few that are kept (`HELD`). A row's statistics come
//! from [`kernels::host::row`], which the sampler uses too, so a token's log-prob here equals the
//! recorded one bit for bit. If sampling was cut (top-k, top-p, min-p, a mask), the distribution is
//! renormalised over the kept set; the ratio of two policies uses these log-probs. Comparisons of
//! two policies, such as the KL to the reference, need log-probs over the whole vocabulary:
//! [`both_log_probs`] computes both from one row of logits.
//!
//! With z = logits / temperature, p = softmax(z): ∂log p(t)/∂z = onehot(t) − p, and ∂H/∂z = −p ∘
//! (log p + H).

mod composed;
mod gpu;
mod host;
mod operation;

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use kernels::arguments::Columns;
use kernels::host::logits::RowTarget;

use super::backend::Backend;
use super::param::Param;
use super::place::{Gpu, Host};
use operation::head_results;

pub use composed::{composed, composed_both};

/// Logits of a chunk, unless these would be fewer than [`LEAST_ROWS`] rows.
const CHUNK: usize = 1 << 22;
/// Fewest rows of a chunk, for which reading the head's weight pays.
const LEAST_ROWS: usize = 384;

/// Most logits that are kept for the backward pass (32 MiB): all logits of a small model, and
/// almost none of a large one.
const HELD: usize = 1 << 23;

/// A token whose log-probability is computed.
#[derive(Clone, Debug)]
pub struct Target {
    /// Row of the hidden states that predicts the token.
    pub row: usize,
    /// Id of the token.
    pub token: u32,
    /// Ascending ids that sampling kept, if it cut the distribution; they include the token.
    pub kept: Option<Arc<[u32]>>,
}

impl Target {
    /// A token of the whole distribution.
    pub fn whole(row: usize, token: u32) -> Self {
        Self {
            row,
            token,
            kept: None,
        }
    }

    /// The target of its row of logits.
    fn token_of_row(&self) -> RowTarget<'_> {
        RowTarget {
            token: self.token,
            kept: self.kept.as_deref(),
        }
    }
}

/// Rows of logits in a chunk.
pub fn chunk_rows(vocabulary: usize) -> usize {
    (CHUNK / vocabulary.max(1)).max(LEAST_ROWS)
}

/// Most logits that [`token_log_probs`] has in memory at once in training: those that are kept for
/// the backward pass, and a chunk that is not.
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

/// Results of [`token_log_probs`]; both are `[targets]` and differentiable.
pub struct TokenLogProbs {
    /// log p(token) of each target.
    pub log_probs: Tensor,
    /// Entropy of the distribution, in nats.
    pub entropy: Tensor,
}

/// Results of [`both_log_probs`]; differentiable.
pub struct BothLogProbs {
    /// Log-probs and entropies of the distributions that tokens were drawn from.
    pub kept: TokenLogProbs,
    /// log p(token) over the whole vocabulary: `[targets]`.
    pub whole: Tensor,
}

/// Column `index` of the operation's results.
fn column(results: &Tensor, index: usize) -> Result<Tensor> {
    results.narrow(1, index, 1)?.squeeze(1)
}

impl TokenLogProbs {
    /// Splits the columns of `[targets, 2 or more]`.
    fn split(results: &Tensor) -> Result<Self> {
        Ok(Self {
            log_probs: column(results, 0)?,
            entropy: column(results, 1)?,
        })
    }

    /// Returns the results if every row of logits was finite; a row that was not has an entropy of
    /// NaN.
    ///
    /// # Errors
    /// The first target with a row of logits that is not finite.
    pub fn finite(self) -> Result<Self> {
        let entropy = self.entropy.to_vec1::<f32>()?;
        match entropy.iter().position(|h| !h.is_finite()) {
            None => Ok(self),
            Some(target) => bail!(
                "the logits of target {target} are not finite: the model's weights are damaged, or \
                 its training diverged"
            ),
        }
    }
}

/// Log-probabilities and entropies of `targets` given `hidden` (`[tokens, width]`) and the head
/// `[vocabulary, width]`, at `temperature` > 0.
///
/// A row of logits that is not finite gives NaN. Training finds it in the loss and skips the step;
/// other callers check with [`TokenLogProbs::finite`].
///
/// # Errors
/// If shapes disagree, or a target's row or token does not exist.
pub fn token_log_probs(
    hidden: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
) -> Result<TokenLogProbs> {
    let results = Columns::Own;
    TokenLogProbs::split(&match head.backend() {
        Backend::Host(_) => head_results::<Host>(hidden, head, targets, temperature, results)?,
        // Losses are computed on the CPU.
        Backend::Gpu(..) => head_results::<Gpu>(hidden, head, targets, temperature, results)?
            .to_device(&Device::Cpu)?,
        Backend::Composed(_) => return composed(hidden, head, targets, temperature),
    })
}

/// The results of [`token_log_probs`], and each token's log-prob over the whole vocabulary. If no
/// target has a kept set, both log-probs are the same tensor, at no extra cost.
///
/// # Errors
/// As [`token_log_probs`].
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
    let results = Columns::OwnAndWhole;
    BothLogProbs::split(&match head.backend() {
        Backend::Host(_) => head_results::<Host>(hidden, head, targets, temperature, results)?,
        // Losses are computed on the CPU.
        Backend::Gpu(..) => head_results::<Gpu>(hidden, head, targets, temperature, results)?
            .to_device(&Device::Cpu)?,
        Backend::Composed(_) => return composed_both(hidden, head, targets, temperature),
    })
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
            // Kept ids ascend.
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
    /// Splits the columns of `[targets, 3]`.
    fn split(results: &Tensor) -> Result<Self> {
        Ok(Self {
            kept: TokenLogProbs::split(results)?,
            whole: column(results, 2)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: a chunk of 384 rows of 20 000 logits is 7.68 million; 8.39 million are kept, so one
    /// chunk fits.
    #[test]
    fn most_logits_are_those_held_and_a_chunk() {
        assert_eq!(chunk_rows(20_000), 384);
        assert_eq!(most_logits(1000, 20_000), 2 * 384 * 20_000);
        // The short last chunk does not fit either.
        assert_eq!(most_logits(384 + 30, 20_000), (384 + 30) * 20_000);
        // All logits of a small vocabulary are kept, and none of a large one.
        assert_eq!(most_logits(4096, 2048), 4096 * 2048);
        assert_eq!(most_logits(4096, 128_256), 384 * 128_256);
        assert_eq!(most_logits(0, 2048), 0);
    }
}
