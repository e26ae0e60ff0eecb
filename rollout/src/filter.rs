//! The filters of sampling: from a row of logits to the set of tokens that can be drawn.
//!
//! `sampling` defines the filters. This implementation does not sort the vocabulary:
//! top-k and top-p select, and tokens too light to matter are passed over by one comparison.
//!
//! Sources: top-k, Fan et al. 2018 (arXiv:1805.04833); top-p, Holtzman et al. 2020
//! (arXiv:1904.09751); min-p, Nguyen et al. 2024 (arXiv:2407.01082).

use crate::row;
use crate::sampling::{Sampling, inverse};

/// A row whose distribution was cut.
pub struct CutRow {
    /// The ids that can be drawn, ascending.
    pub kept: Vec<u32>,
    /// Statistics of the whole row at the sampling temperature.
    pub whole: row::RowStats,
}

/// The ids that the filters leave, ascending; `None` for the whole vocabulary.
///
/// Public for implementations that draw on a device, and for tests.
pub fn kept_set(logits: &[f32], sampling: &Sampling, forbidden: &[u32]) -> Option<Vec<u32>> {
    cut(logits, sampling, forbidden).map(|cut| cut.kept)
}

/// The set that the filters leave, with the statistics of the row that they cut; `None` for the
/// whole vocabulary.
pub fn cut(logits: &[f32], sampling: &Sampling, forbidden: &[u32]) -> Option<CutRow> {
    if forbidden.is_empty() && !sampling.cuts() {
        return None;
    }
    let inv_temperature = inverse(sampling.temperature);
    let whole = row::stats(logits, inv_temperature);
    let candidates = if forbidden.is_empty() {
        filter(logits, sampling, &whole)
    } else {
        let masked = without(logits, forbidden);
        filter(&masked, sampling, &row::stats(&masked, inv_temperature))
    };
    if candidates.len() == logits.len() {
        return None;
    }
    let mut kept: Vec<u32> = candidates
        .into_iter()
        .map(|candidate| candidate.id)
        .collect();
    kept.sort_unstable();
    Some(CutRow { kept, whole })
}

/// The logits with forbidden tokens made impossible.
pub fn without(logits: &[f32], forbidden: &[u32]) -> Vec<f32> {
    let mut masked = logits.to_vec();
    for &id in forbidden {
        if let Some(logit) = masked.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    masked
}

/// A token that may survive the filters.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    /// exp(z − max): its probability but for a factor.
    weight: f32,
    id: u32,
}

/// The tokens that the filters leave of a row with these statistics.
fn filter(logits: &[f32], sampling: &Sampling, stats: &row::RowStats) -> Vec<Candidate> {
    let inv_temperature = inverse(sampling.temperature);
    let least = match sampling.top_k {
        0 => negligible(stats, sampling, logits.len()),
        k => kth_largest(logits, k),
    };
    let mut candidates = at_least(logits, least, inv_temperature, stats.max);
    if sampling.top_p < 1.0 {
        let total = match sampling.top_k {
            0 => f64::from(stats.sum),
            _ => candidates.iter().map(|c| f64::from(c.weight)).sum(),
        };
        let kept = nucleus(&mut candidates, f64::from(sampling.top_p) * total);
        candidates.truncate(kept);
    }
    if sampling.min_p > 0.0 {
        let best = row::max(logits);
        candidates.retain(|c| c.weight >= sampling.min_p || c.logit == best);
    }
    candidates
}

/// A logit below which top-p or min-p cuts every token for certain, so that few are left to weigh.
///
/// Tokens that each weigh less than (1 − top_p)·sum/vocabulary weigh less than 1 − top_p together:
/// they lie outside the nucleus.
fn negligible(stats: &row::RowStats, sampling: &Sampling, vocab: usize) -> f32 {
    let tail = (1.0 - sampling.top_p) * stats.sum / vocab as f32;
    // Clear of rounding; a little lower costs a few candidates and changes nothing else.
    let margin = 1e-3 + 1e-6 * stats.max.abs();
    (stats.max + tail.max(sampling.min_p).ln() - margin) * sampling.temperature
}

/// The possible tokens with a logit of `least` or more, in ascending order of id.
fn at_least(logits: &[f32], least: f32, inv_temperature: f32, max: f32) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = (0..)
        .zip(logits)
        .filter(|&(_, &logit)| logit >= least && logit > f32::NEG_INFINITY)
        .map(|(id, &logit)| Candidate {
            logit,
            weight: 0.0,
            id,
        })
        .collect();
    let found: Vec<f32> = candidates.iter().map(|c| c.logit).collect();
    let mut weights = vec![0.0; found.len()];
    row::weights(&found, inv_temperature, max, &mut weights);
    for (candidate, weight) in candidates.iter_mut().zip(weights) {
        candidate.weight = weight;
    }
    candidates
}

/// The k-th largest logit, or −∞ where there are fewer; k above 0.
///
/// One pass keeps the best so far in a buffer and halves it by selection when it is full.
fn kth_largest(logits: &[f32], k: usize) -> f32 {
    if k >= logits.len() {
        return f32::NEG_INFINITY;
    }
    let room = 2 * k.max(512);
    let mut best = Vec::with_capacity(room);
    let mut least = f32::NEG_INFINITY;
    for &logit in logits {
        if logit > least {
            best.push(logit);
            if best.len() == room {
                least = select(&mut best, k);
            }
        }
    }
    if best.len() < k {
        least
    } else {
        select(&mut best, k)
    }
}

/// Cuts `best` to its k largest elements and returns the smallest of them.
fn select(best: &mut Vec<f32>, k: usize) -> f32 {
    let (_, &mut kth, _) = best.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    best.truncate(k);
    kth
}

/// Moves to the front the shortest run of most probable candidates whose weights reach `target` and
/// returns its length, at least 1 unless there are none. Among equal logits the lower id comes
/// first.
///
/// A bisection by selection: the sum of the better half says which half holds the end. Linear on
/// average, where a sort is not.
fn nucleus(candidates: &mut [Candidate], target: f64) -> usize {
    let order = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id));
    let (mut start, mut end) = (0, candidates.len());
    let mut above = 0.0; // weight of the candidates before `start`, below the target
    while end - start > 1 {
        let half = (end - start) / 2;
        candidates[start..end].select_nth_unstable_by(half, order);
        let weight: f64 = candidates[start..start + half]
            .iter()
            .map(|c| f64::from(c.weight))
            .sum();
        if above + weight >= target {
            end = start + half;
        } else {
            above += weight;
            start += half;
        }
    }
    end
}
