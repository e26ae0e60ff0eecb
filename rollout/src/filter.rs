//! The filters of sampling: from a row of logits to the set of tokens that can be drawn.
//!
//! [`Sampling`] defines the filters. This implementation does not sort the vocabulary:
//! top-k and top-p select, and tokens too light to matter are passed over by one comparison.
//!
//! Sources: top-k, Fan et al. 2018 (arXiv:1805.04833); top-p, Holtzman et al. 2020
//! (arXiv:1904.09751); min-p, Nguyen et al. 2024 (arXiv:2407.01082).

use kernels::host::row;

/// The distribution that tokens are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; above 0.
    pub temperature: f32,
    /// Keeps the k most probable tokens and those equal to the last of them; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most probable tokens until their sum reaches this, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the best, in [0, 1]; 0 keeps all.
    pub min_p: f32,
}

impl Default for Sampling {
    /// The model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

/// A setting outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {found}; it must be {expected}")]
pub struct SamplingError {
    /// The field's name.
    pub name: &'static str,
    /// The field's value.
    pub found: f32,
    /// The allowed range, in words.
    pub expected: &'static str,
}

impl Sampling {
    /// Checks every field's range.
    pub fn check(&self) -> Result<(), SamplingError> {
        let rule = |holds: bool, name, found, expected| {
            holds.then_some(()).ok_or(SamplingError {
                name,
                found,
                expected,
            })
        };
        let (t, p, m) = (self.temperature, self.top_p, self.min_p);
        // 1e-4 still leaves z = x / temperature finite for any logit that a model gives.
        let warm = (1e-4..=1e4).contains(&t);
        let range = "from 0.0001 to 10000 (for the most probable token choose greedy decoding)";
        rule(warm, "temperature", t, range)?;
        rule(p > 0.0 && p <= 1.0, "top_p", p, "above 0 and at most 1")?;
        rule((0.0..=1.0).contains(&m), "min_p", m, "from 0 to 1")
    }

    /// True if a filter is on, so that tokens may be cut.
    fn cuts(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }
}

/// A row whose distribution was cut.
pub struct CutRow {
    /// The ids that can be drawn, ascending.
    pub kept: Vec<u32>,
    /// Statistics of the whole row at the sampling temperature.
    pub whole: row::RowStats,
}

/// 1 / temperature: what the functions of [`row`] take, here and in training.
pub fn inverse(temperature: f32) -> f32 {
    1.0 / temperature
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
    /// exp(z − max): its probability up to a factor.
    weight: f32,
    id: u32,
}

/// The mass of a weight of 1.
const UNIT_MASS: f32 = (1u64 << 43) as f32;

impl Candidate {
    /// The weight in units of 2⁻⁴³, rounded down. Sums of integers do not depend on the order of
    /// the terms, and so a nucleus is the same set wherever and however it is selected.
    ///
    /// Rounding of the largest logits may leave a weight above 1. The bound keeps the sum of
    /// fewer than 2²⁰ tokens within 64 bits.
    fn mass(&self) -> u64 {
        (self.weight.min(2.0) * UNIT_MASS) as u64
    }
}

/// Mass of all of these together.
fn mass_of(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(Candidate::mass).sum()
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
            0 => f64::from(stats.sum) * f64::from(UNIT_MASS),
            _ => mass_of(&candidates) as f64,
        };
        let target = (f64::from(sampling.top_p) * total).ceil() as u64;
        let kept = nucleus(&mut candidates, target);
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
    // Rounded once from double precision: the logarithm of every library and device.
    let distance = f64::from(tail.max(sampling.min_p)).ln() as f32;
    (stats.max + distance - margin) * sampling.temperature
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

/// Moves to the front the shortest run of most probable candidates whose mass reaches `target` and
/// returns its length, at least 1 unless there are none. Among equal logits the lower id comes
/// first.
///
/// A bisection by selection: the sum of the better half says which half holds the end. Linear on
/// average, where a sort is not.
fn nucleus(candidates: &mut [Candidate], target: u64) -> usize {
    let order = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id));
    let (mut start, mut end) = (0, candidates.len());
    let mut above = 0; // mass of the candidates before `start`, below the target
    while end - start > 1 {
        let half = (end - start) / 2;
        candidates[start..end].select_nth_unstable_by(half, order);
        let reached = above + mass_of(&candidates[start..start + half]);
        if reached >= target {
            end = start + half;
        } else {
            above = reached;
            start += half;
        }
    }
    end
}
