//! From a row of logits to a token and the log-probability it was drawn with.
//!
//! The filters act in this order, each on what the one before left, as transformers' warpers do:
//! tokens forbidden for now, temperature, top-k (ties kept), top-p, min-p. What remains is the kept
//! set. The token is drawn from the softmax over it, and that softmax's log-probability is
//! recorded, along with the set itself wherever it is not the whole vocabulary: so a training
//! forward can renormalise over the same set, and learning stays on-policy. Recorded beside it is
//! the token's log-probability over the whole vocabulary at the same temperature, by which policies
//! are compared that would not have kept the same set.
//!
//! A draw is the inverse of the cumulative distribution at a given uniform number; tokens stand in
//! ascending order. The sums run over fixed blocks, so the token is a function of the row and the
//! number alone.
//!
//! Not here: the filters and their settings (`filter`), randomness and the arithmetic
//! of a row (the crate `kernels`), penalties for repetition.

use kernels::host::row;

pub use crate::filter::{Sampling, SamplingError, inverse, kept_set};
use crate::filter::{cut, without};

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decoding {
    /// The most probable token, the lowest id among equals. Its recorded log-probability is that of
    /// the whole vocabulary at temperature 1.
    Greedy,
    /// A random token.
    Sample(Sampling),
}

/// Identifies a sequence by its request and its sample, both from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId {
    /// Index into the requests.
    pub request: usize,
    /// Index of the sample within the request.
    pub sample: usize,
}

/// A request for one token.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// Index of the row among the step's logits.
    pub row: usize,
    /// The sequence that the token is drawn for.
    pub sequence: SequenceId,
    /// Index of the token among the sequence's generated tokens, from 0.
    pub position: usize,
    /// Greedy decoding or sampling.
    pub decoding: Decoding,
    /// Ids that may not be chosen; ids outside the vocabulary are ignored.
    pub forbidden: &'a [u32],
    /// A uniform number in [0, 1).
    pub uniform: f64,
    /// Whether to compute the entropy of the distribution.
    pub entropy: bool,
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The token's id.
    pub token: u32,
    /// The token's log-probability in the distribution it was drawn from.
    pub log_prob: f32,
    /// The token's log-probability over the whole vocabulary at the sampling temperature (greedy:
    /// 1); where nothing was cut the same number.
    pub whole_log_prob: f32,
    /// Entropy of the distribution it was drawn from in nats, if requested.
    pub entropy: Option<f32>,
    /// The ids that could have been drawn, ascending, where that is not the whole vocabulary.
    pub kept: Option<Vec<u32>>,
}

/// A row of logits that gives no token.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "the logits of request {}, sample {}, new token {position} {fault}; \
     the model has diverged or its weights are damaged",
    sequence.request, sequence.sample
)]
pub struct RowError {
    /// The sequence that the row belongs to.
    pub sequence: SequenceId,
    /// Index of the generated token, from 0.
    pub position: usize,
    /// The fault of the row.
    pub fault: RowFault,
}

/// A fault of a row of logits.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum RowFault {
    /// NaN or +∞.
    #[error("hold {value} for token {token}")]
    NotANumber {
        /// The first such token.
        token: usize,
        /// The logit of the token.
        value: f32,
    },
    /// No logit, or −∞ for each token that is not forbidden.
    #[error("leave no possible token")]
    Empty,
}

/// Draws one token from its row, `[vocab]`. A pure function; the CPU's way to implement
/// [`crate::Model::draw`].
pub fn draw_row(logits: &[f32], draw: &Draw<'_>) -> Result<Drawn, RowError> {
    checked(logits)
        .and_then(|()| match draw.decoding {
            Decoding::Greedy => greedy(logits, draw),
            Decoding::Sample(sampling) => sample(logits, &sampling, draw),
        })
        .map_err(|fault| RowError {
            sequence: draw.sequence,
            position: draw.position,
            fault,
        })
}

fn checked(logits: &[f32]) -> Result<(), RowFault> {
    // Without an early exit the comparison vectorises; NaN is not below +∞.
    if logits.iter().fold(true, |ok, &x| ok & (x < f32::INFINITY)) {
        return Ok(());
    }
    let bad = logits
        .iter()
        .enumerate()
        .find(|(_, x)| **x >= f32::INFINITY || x.is_nan());
    Err(
        bad.map_or(RowFault::Empty, |(token, &value)| RowFault::NotANumber {
            token,
            value,
        }),
    )
}

fn greedy(logits: &[f32], draw: &Draw<'_>) -> Result<Drawn, RowFault> {
    let masked;
    let allowed = if draw.forbidden.is_empty() {
        logits
    } else {
        masked = without(logits, draw.forbidden);
        &masked
    };
    let best = row::max(allowed);
    let first = allowed.iter().position(|&x| x == best);
    let token = first
        .filter(|_| best > f32::NEG_INFINITY)
        .ok_or(RowFault::Empty)? as u32;
    let stats = row::stats(logits, 1.0);
    let log_prob = row::log_prob(logits, 1.0, &stats, token);
    Ok(Drawn {
        token,
        log_prob,
        whole_log_prob: log_prob,
        entropy: draw.entropy.then(|| row::entropy(logits, 1.0, &stats)),
        kept: None,
    })
}

fn sample(logits: &[f32], sampling: &Sampling, draw: &Draw<'_>) -> Result<Drawn, RowFault> {
    let inv_temperature = inverse(sampling.temperature);
    let cut = cut(logits, sampling, draw.forbidden);
    let gathered;
    let scores = match &cut {
        None => logits,
        Some(cut) => {
            gathered = row::gather(logits, &cut.kept);
            &gathered
        }
    };
    let chosen = draw_from(scores, inv_temperature, draw.uniform)?;
    let entropy = || row::entropy(scores, inv_temperature, &chosen.stats);
    let (token, whole_log_prob) = match &cut {
        None => (chosen.index as u32, chosen.log_prob),
        Some(cut) => {
            let token = cut.kept[chosen.index];
            (
                token,
                row::log_prob(logits, inv_temperature, &cut.whole, token),
            )
        }
    };
    Ok(Drawn {
        token,
        log_prob: chosen.log_prob,
        whole_log_prob,
        entropy: draw.entropy.then(entropy),
        kept: cut.map(|cut| cut.kept),
    })
}

/// A draw within a row.
struct Chosen {
    index: usize,
    log_prob: f32,
    stats: row::RowStats,
}

/// The first index at which the cumulative distribution exceeds `uniform`.
fn draw_from(logits: &[f32], inv_temperature: f32, uniform: f64) -> Result<Chosen, RowFault> {
    let max = row::max(logits) * inv_temperature;
    let mut sums = vec![0.0; logits.len().div_ceil(row::BLOCK)];
    row::block_sums(logits, inv_temperature, max, &mut sums);
    let total: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
    let stats = row::RowStats {
        max,
        sum: total as f32,
    };
    if !stats.is_finite() {
        return Err(RowFault::Empty);
    }
    let (block, rest) = locate(&sums, uniform * total);
    let start = block * row::BLOCK;
    let end = logits.len().min(start + row::BLOCK);
    let mut weights = [0.0; row::BLOCK];
    row::weights(
        &logits[start..end],
        inv_temperature,
        max,
        &mut weights[..end - start],
    );
    // The block's weights, added one by one, may differ from its sum in the last bits: scale to
    // them.
    let exact: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let (within, _) = locate(&weights, rest / f64::from(sums[block]) * exact);
    let index = start + within;
    Ok(Chosen {
        index,
        log_prob: row::log_prob(logits, inv_temperature, &stats, index as u32),
        stats,
    })
}

/// The first place at which the running sum of `weights` exceeds `target`, and how far into it the
/// target lies. Where rounding left the target at the very end, the last place that has any weight.
fn locate(weights: &[f32], target: f64) -> (usize, f64) {
    let mut rest = target;
    let mut last = (0, 0.0);
    for (place, &weight) in weights.iter().enumerate() {
        let weight = f64::from(weight);
        if rest < weight {
            return (place, rest);
        }
        if weight > 0.0 {
            last = (place, weight);
        }
        rest -= weight;
    }
    last
}

#[cfg(test)]
mod tests {
    use super::locate;

    /// Rounding may leave a target at the very end, behind which tokens have no weight.
    #[test]
    fn a_target_at_the_end_gives_the_last_token_that_has_weight() {
        assert_eq!(locate(&[1.0, 0.5, 0.0], 1.25), (1, 0.25));
        assert_eq!(locate(&[1.0, 0.5, 0.0], 1.5), (1, 0.5));
    }
}
