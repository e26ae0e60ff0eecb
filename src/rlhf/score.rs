//! Shaping of scores before they become rewards: normalisation, clipping, and the penalties for a
//! missing end and for length.
//!
//! A PPO iteration normalises, clips, and penalises, in this order; metrics report the raw scores.

use serde::{Deserialize, Serialize};

use super::error::{Result, RlhfError, check_length, check_not_negative, check_positive};
use super::stats::{Real, mean, variance};

/// Keeps a standard deviation of zero (one sample, or all equal) from dividing by zero.
const STD_EPSILON: f64 = 1e-8;

/// Mean and variance of all scores so far, without storing them: Welford's update in the pairwise
/// form of Chan, Golub and LeVeque 1979. They are part of a run's state and of its checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct RunningMoments {
    count: u64,
    mean: f64,
    square_sum: f64, // Σ (x − mean)²
}

impl RunningMoments {
    /// Adds a batch. Scores that are not finite are left out, since they would stay in the moments.
    pub fn observe<T: Real>(&mut self, scores: &[T]) {
        let batch: Vec<f64> = scores
            .iter()
            .map(|&s| s.into())
            .filter(|s| s.is_finite())
            .collect();
        if batch.is_empty() {
            return;
        }
        let (before, added) = (self.count as f64, batch.len() as f64);
        let total = before + added;
        let shift = mean(&batch) - self.mean;
        self.square_sum += variance(&batch) * added + shift * shift * before * added / total;
        self.mean += shift * added / total;
        self.count += batch.len() as u64;
    }

    /// Mean of the scores; 0 before the first.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Biased standard deviation of the scores; 0 before the second.
    pub fn std(&self) -> f64 {
        (self.square_sum / self.count.max(1) as f64).sqrt()
    }
}

/// Normalisation of scores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ScoreNormalizer {
    /// Scores are not changed.
    None,
    /// Mean and deviation of fixed reference samples, such that these have mean 0 and deviation 1
    /// (Ziegler et al. 2019, section 2; Stiennon et al. 2020, section 3.4).
    Fixed {
        /// Mean score of the reference samples.
        mean: f64,
        /// Standard deviation of the reference samples.
        std: f64,
    },
    /// Mean and deviation of all scores so far.
    Running(RunningMoments),
}

impl ScoreNormalizer {
    /// A fixed normaliser with mean and deviation of these reference scores.
    ///
    /// # Errors
    /// [`RlhfError::Range`] if the deviation is zero or not finite.
    pub fn from_reference<T: Real>(scores: &[T]) -> Result<Self> {
        let std = variance(scores).sqrt();
        check_positive("the standard deviation of the reference scores", std)?;
        Ok(Self::Fixed {
            mean: mean(scores),
            std,
        })
    }

    /// Adds a batch of raw scores to the running moments; the other normalisers ignore it. Call it
    /// before [`normalize`](Self::normalize).
    pub fn observe<T: Real>(&mut self, scores: &[T]) {
        match self {
            Self::None | Self::Fixed { .. } => {}
            Self::Running(moments) => moments.observe(scores),
        }
    }

    /// (score − mean) / deviation: `[B]` → `[B]`.
    pub fn normalize<T: Real>(&self, scores: &[T]) -> Vec<f64> {
        let (mean, std) = match self {
            Self::None => return scores.iter().map(|&s| s.into()).collect(),
            Self::Fixed { mean, std } => (*mean, *std),
            Self::Running(moments) => (moments.mean(), moments.std()),
        };
        scores
            .iter()
            .map(|&s| (s.into() - mean) / (std + STD_EPSILON))
            .collect()
    }
}

/// Scores within ±`limit`. NaN stays NaN.
///
/// # Errors
/// [`RlhfError::Range`] if `limit` is not above zero.
pub fn clip_scores<T: Real>(scores: &[T], limit: f64) -> Result<Vec<f64>> {
    check_positive("the score clip", limit)?;
    Ok(scores
        .iter()
        .map(|&s| s.into().clamp(-limit, limit))
        .collect())
}

/// Subtracts `penalty` from the score of each response that was cut before its stop token.
///
/// `finished[b]` says whether response b ended with a stop token.
///
/// # Errors
/// A length error if the lengths differ.
pub fn penalize_missing_eos<T: Real>(
    scores: &[T],
    finished: &[bool],
    penalty: f64,
) -> Result<Vec<f64>> {
    check_length("finished flags", finished.len(), scores.len())?;
    let penalized = |(&s, &finished): (&T, &bool)| {
        if finished {
            s.into()
        } else {
            s.into() - penalty
        }
    };
    Ok(scores.iter().zip(finished).map(penalized).collect())
}

/// The soft overlong punishment of Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning
/// System at Scale", eq. 13.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overlong {
    /// Most tokens of a response, L_max.
    pub limit: usize,
    /// L_cache: the number of last tokens, up to the limit, over which the penalty grows; at most
    /// the limit.
    pub buffer: usize,
    /// Penalty at the limit; 1 in the paper.
    pub penalty: f64,
}

impl Overlong {
    /// Penalty of a response of `length` tokens: 0 up to L_max − L_cache, then (length − (L_max −
    /// L_cache)) / L_cache of the full penalty, and the full penalty from L_max on.
    fn of(&self, length: usize) -> f64 {
        let over = length.saturating_sub(self.limit - self.buffer);
        match over {
            0 => 0.0,
            over => self.penalty * over.min(self.buffer) as f64 / self.buffer as f64,
        }
    }
}

/// Subtracts the penalty of each response's length from its score.
///
/// `scores` and `lengths` (in tokens, the stop token included) are `[B]`.
///
/// ```
/// use collimate::rlhf::score::{Overlong, penalize_overlong};
/// let overlong = Overlong { limit: 20, buffer: 4, penalty: 1.0 };
/// let penalized = penalize_overlong(&[1.0, 1.0, 1.0], &[16, 17, 20], overlong).unwrap();
/// assert_eq!(penalized, [1.0, 0.75, 0.0]);
/// ```
///
/// # Errors
/// A length error if the lengths differ; a range error if the buffer is 0 or above the limit, or
/// the penalty negative.
pub fn penalize_overlong<T: Real>(
    scores: &[T],
    lengths: &[usize],
    overlong: Overlong,
) -> Result<Vec<f64>> {
    check_length("response lengths", lengths.len(), scores.len())?;
    check_not_negative("the overlong penalty", overlong.penalty)?;
    if !(1..=overlong.limit).contains(&overlong.buffer) {
        return Err(RlhfError::Range {
            what: "the overlong buffer",
            found: overlong.buffer as f64,
            requirement: "at least 1 and at most the longest response",
        });
    }
    let penalized = |(&s, &length): (&T, &usize)| s.into() - overlong.of(length);
    Ok(scores.iter().zip(lengths).map(penalized).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f64; 7] = [1.5, -0.25, 3.0, 0.0, 8.0, -4.0, 2.25];

    #[test]
    fn running_moments_in_batches_equal_those_of_all() {
        let mut moments = RunningMoments::default();
        for batch in [&SCORES[..1], &SCORES[1..5], &[], &SCORES[5..]] {
            moments.observe(batch);
        }
        assert_eq!(moments.count, 7);
        assert!((moments.mean() - mean(&SCORES)).abs() < 1e-12);
        assert!((moments.std() - variance(&SCORES).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_broken_score_does_not_spoil_the_moments() {
        let mut moments = RunningMoments::default();
        moments.observe(&[1.0, f64::NAN, 3.0, f64::INFINITY]);
        assert_eq!(
            (moments.count, moments.mean(), moments.std()),
            (2, 2.0, 1.0)
        );
    }

    #[test]
    fn reference_samples_get_mean_zero_and_deviation_one() {
        let normalizer = ScoreNormalizer::from_reference(&SCORES).unwrap();
        let normal = normalizer.normalize(&SCORES);
        assert!(mean(&normal).abs() < 1e-12 && (variance(&normal) - 1.0).abs() < 1e-7);
        assert!(ScoreNormalizer::from_reference(&[2.0, 2.0]).is_err());
    }

    #[test]
    fn only_running_learns_and_its_state_survives_serialisation() {
        let mut fixed = ScoreNormalizer::Fixed {
            mean: 1.0,
            std: 2.0,
        };
        fixed.observe(&SCORES);
        assert!((fixed.normalize(&[5.0])[0] - 2.0).abs() < 1e-7);
        let mut running = ScoreNormalizer::Running(RunningMoments::default());
        running.observe(&SCORES);
        let text = serde_json::to_string(&running).unwrap();
        assert_eq!(
            serde_json::from_str::<ScoreNormalizer>(&text).unwrap(),
            running
        );
        assert_eq!(ScoreNormalizer::None.normalize(&SCORES), SCORES);
    }

    #[test]
    fn one_score_alone_normalises_to_zero() {
        let mut running = ScoreNormalizer::Running(RunningMoments::default());
        running.observe(&[3.0]);
        assert_eq!(running.normalize(&[3.0]), [0.0]);
    }

    #[test]
    fn clip_and_penalty() {
        assert_eq!(
            clip_scores(&[-7.0f32, 0.5, 7.0], 5.0).unwrap(),
            [-5.0, 0.5, 5.0]
        );
        assert!(clip_scores(&[1.0], 0.0).is_err());
        assert_eq!(
            penalize_missing_eos(&[1.0, 1.0], &[true, false], 3.0).unwrap(),
            [1.0, -2.0]
        );
    }

    /// DAPO's own sizes: L_max = 20480 with L_cache = 4096; then a penalty of 2 over the whole
    /// response.
    #[test]
    fn the_overlong_penalty_grows_over_the_buffer() {
        let dapo = Overlong {
            limit: 20_480,
            buffer: 4096,
            penalty: 1.0,
        };
        let lengths = [1, 16_384, 17_408, 18_432, 20_480, 30_000];
        let found = penalize_overlong(&[0.0; 6], &lengths, dapo).unwrap();
        assert_eq!(found, [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]);
        let whole = Overlong {
            limit: 4,
            buffer: 4,
            penalty: 2.0,
        };
        let found = penalize_overlong(&[1.0; 4], &[1, 2, 3, 4], whole).unwrap();
        assert_eq!(found, [0.5, 0.0, -0.5, -1.0]);
    }

    #[test]
    fn impossible_overlong_penalties_are_refused() {
        for (buffer, penalty) in [(0, 1.0), (9, 1.0), (4, -1.0), (4, f64::NAN)] {
            let overlong = Overlong {
                limit: 8,
                buffer,
                penalty,
            };
            assert!(penalize_overlong(&[1.0], &[8], overlong).is_err());
        }
    }
}
