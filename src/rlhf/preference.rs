//! Losses on pairs of a chosen and a rejected answer.
//!
//! - Bradley-Terry for reward models: Ouyang et al. 2022, "Training Language Models to Follow
//!   Instructions", eq. 1; the margin of Touvron et al. 2023, "Llama 2", eq. 2; centring of Eisenstein
//!   et al. 2023, "Helping or Herding?", eq. 2.
//! - DPO: Rafailov et al. 2023, "Direct Preference Optimization", eq. 7.
//! - IPO: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
//!   Preferences", eq. 17.
//!
//! Every function takes `pairs`, the number of pairs in the whole optimizer step: losses are means over
//! the step, so a micro-batch gives its part of them.

use candle_core::Tensor;

use super::differentiable::{attach_gradient, host_values};
use super::error::{Result, check_length, check_not_negative, check_positive};
use super::stats::Real;

/// Sums over the pairs of a micro-batch; [`merge`](Self::merge) them over a step, then read the means.
///
/// "Reward" is the reward model's score, or DPO's implicit reward β (log π − log π_ref).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PreferenceStats {
    /// Number of pairs seen.
    pub pairs: usize,
    /// Pairs whose chosen answer has the higher reward.
    pub correct: usize,
    /// Σ reward of the chosen answers.
    pub chosen_sum: f64,
    /// Σ reward of the rejected answers.
    pub rejected_sum: f64,
}

impl PreferenceStats {
    fn observe(&mut self, chosen: f64, rejected: f64) {
        self.pairs += 1;
        self.correct += usize::from(chosen > rejected);
        self.chosen_sum += chosen;
        self.rejected_sum += rejected;
    }

    /// Adds the pairs of another micro-batch.
    pub fn merge(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.correct += other.correct;
        self.chosen_sum += other.chosen_sum;
        self.rejected_sum += other.rejected_sum;
    }

    /// Share of pairs ranked rightly, a tie counting as wrong; NaN without pairs.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.pairs as f64
    }

    /// Mean of reward(chosen) − reward(rejected); NaN without pairs.
    pub fn margin(&self) -> f64 {
        (self.chosen_sum - self.rejected_sum) / self.pairs as f64
    }
}

/// Result of [`bradley_terry`].
#[derive(Debug, Clone)]
pub struct BradleyTerryLoss {
    /// Scalar to call `backward` on: ranking plus centring.
    pub loss: Tensor,
    /// −log σ(chosen − rejected − margin), summed and divided by the step's pairs.
    pub ranking: f64,
    /// The centring term, its coefficient included.
    pub centering: f64,
    /// Unweighted sums over the pairs.
    pub stats: PreferenceStats,
}

/// Mean of −log σ(chosen − rejected − margin) + centering_coef · (chosen + rejected)².
///
/// `chosen` and `rejected` are differentiable scores `[B]`; `margins` is `[B]` if the data has them.
/// Centring holds the scores near zero, which the ranking alone leaves free.
///
/// # Errors
/// A length error if the arguments differ in length; a range error for `pairs` 0 or a negative
/// coefficient; candle's errors.
pub fn bradley_terry(
    chosen: &Tensor,
    rejected: &Tensor,
    margins: Option<&[f64]>,
    centering_coef: f64,
    pairs: usize,
) -> Result<BradleyTerryLoss> {
    check_not_negative("the centring coefficient", centering_coef)?;
    check_positive("the step's pair count", pairs as f64)?;
    let (c, r) = (host_values(chosen)?, host_values(rejected)?);
    check_length("rejected scores", r.len(), c.len())?;
    check_length("margins", margins.map_or(c.len(), <[f64]>::len), c.len())?;
    let weight = 1.0 / pairs as f64;
    let mut gradients = PairGradients::with_capacity(c.len());
    let (mut ranking, mut centering, mut stats) = (0.0, 0.0, PreferenceStats::default());
    for i in 0..c.len() {
        let logit = c[i] - r[i] - margins.map_or(0.0, |m| m[i]);
        let sum = c[i] + r[i];
        ranking -= weight * log_sigmoid(logit);
        centering += weight * centering_coef * sum * sum;
        let (pull, centre) = (
            -weight * sigmoid(-logit),
            2.0 * weight * centering_coef * sum,
        );
        gradients.push(pull + centre, -pull + centre);
        stats.observe(c[i], r[i]);
    }
    let loss = gradients.attach(chosen, rejected, ranking + centering)?;
    Ok(BradleyTerryLoss {
        loss,
        ranking,
        centering,
        stats,
    })
}

/// The function of the implicit reward margin that is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirectObjective {
    /// DPO: −log σ(β h), h = (log π − log π_ref)(chosen) − (log π − log π_ref)(rejected).
    Sigmoid,
    /// IPO: (h − 1/(2β))². Its authors take log-probs averaged over tokens; the caller chooses.
    Ipo,
}

impl DirectObjective {
    /// Value and derivative at the log-ratio difference `h`.
    fn at(self, h: f64, beta: f64) -> (f64, f64) {
        match self {
            Self::Sigmoid => (-log_sigmoid(beta * h), -beta * sigmoid(-beta * h)),
            Self::Ipo => {
                let error = h - 1.0 / (2.0 * beta);
                (error * error, 2.0 * error)
            }
        }
    }
}

/// Log-probs of whole answers under the frozen reference; both are `[B]`.
#[derive(Debug, Clone, Copy)]
pub struct ReferenceLogProbs<'a, T> {
    /// Of the chosen answers.
    pub chosen: &'a [T],
    /// Of the rejected answers.
    pub rejected: &'a [T],
}

/// Result of [`direct_preference`].
#[derive(Debug, Clone)]
pub struct DirectPreferenceLoss {
    /// Scalar to call `backward` on.
    pub loss: Tensor,
    /// The same number on the host, in full precision.
    pub value: f64,
    /// Unweighted sums of the implicit rewards β (log π − log π_ref).
    pub stats: PreferenceStats,
}

/// DPO or IPO on pairs, without a reward model.
///
/// `chosen` and `rejected` are the differentiable log-probs of whole answers under the policy, `[B]`.
///
/// # Errors
/// A length error if the arguments differ in length; a range error for `pairs` 0 or β not above zero;
/// candle's errors.
pub fn direct_preference<T: Real>(
    chosen: &Tensor,
    rejected: &Tensor,
    reference: ReferenceLogProbs<T>,
    objective: DirectObjective,
    beta: f64,
    pairs: usize,
) -> Result<DirectPreferenceLoss> {
    check_positive("beta", beta)?;
    check_positive("the step's pair count", pairs as f64)?;
    let (c, r) = (host_values(chosen)?, host_values(rejected)?);
    check_length("rejected log-probs", r.len(), c.len())?;
    check_length(
        "reference log-probs of chosen answers",
        reference.chosen.len(),
        c.len(),
    )?;
    check_length(
        "reference log-probs of rejected answers",
        reference.rejected.len(),
        c.len(),
    )?;
    let weight = 1.0 / pairs as f64;
    let mut gradients = PairGradients::with_capacity(c.len());
    let (mut value, mut stats) = (0.0, PreferenceStats::default());
    for i in 0..c.len() {
        let (chosen_ratio, rejected_ratio) = (
            c[i] - reference.chosen[i].into(),
            r[i] - reference.rejected[i].into(),
        );
        let (loss, slope) = objective.at(chosen_ratio - rejected_ratio, beta);
        value += weight * loss;
        gradients.push(weight * slope, -weight * slope);
        stats.observe(beta * chosen_ratio, beta * rejected_ratio);
    }
    Ok(DirectPreferenceLoss {
        loss: gradients.attach(chosen, rejected, value)?,
        value,
        stats,
    })
}

/// Gradients with respect to both members of each pair.
struct PairGradients {
    chosen: Vec<f64>,
    rejected: Vec<f64>,
}

impl PairGradients {
    fn with_capacity(pairs: usize) -> Self {
        Self {
            chosen: Vec::with_capacity(pairs),
            rejected: Vec::with_capacity(pairs),
        }
    }

    fn push(&mut self, chosen: f64, rejected: f64) {
        self.chosen.push(chosen);
        self.rejected.push(rejected);
    }

    /// The loss of `value` as a function of both tensors.
    fn attach(self, chosen: &Tensor, rejected: &Tensor, value: f64) -> Result<Tensor> {
        let of_chosen = attach_gradient(chosen, value, self.chosen)?;
        Ok((of_chosen + attach_gradient(rejected, 0.0, self.rejected)?)?)
    }
}

/// 1 / (1 + exp(−x)); exp overflows to infinity for very negative x, and the result is rightly 0.
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// log σ(x) without overflow: min(x, 0) − log(1 + exp(−|x|)).
fn log_sigmoid(x: f64) -> f64 {
    // Written so that NaN stays NaN, which `f64::min` would turn into 0.
    let negative_part = if x > 0.0 { 0.0 } else { x };
    negative_part - (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::super::differentiable::tests::{gradient, var};
    use super::*;

    #[test]
    fn log_sigmoid_is_exact_far_out() {
        assert_eq!(log_sigmoid(-800.0), -800.0);
        assert_eq!(log_sigmoid(800.0), 0.0);
        assert!((log_sigmoid(0.0) + 2f64.ln()).abs() < 1e-15);
        assert!(log_sigmoid(f64::NAN).is_nan());
        assert_eq!((sigmoid(-800.0), sigmoid(800.0)), (0.0, 1.0));
    }

    #[test]
    fn micro_batches_add_up_to_the_step() {
        let (chosen, rejected, margins) = ([0.5, -1.0, 2.0], [0.1, 0.3, 2.5], [0.0, 0.2, 1.0]);
        let part = |range: std::ops::Range<usize>| {
            let (c, r) = (var(&chosen[range.clone()]), var(&rejected[range.clone()]));
            let result = bradley_terry(&c, &r, Some(&margins[range]), 0.01, 3).unwrap();
            (gradient(&result.loss, &c), result)
        };
        let (whole_gradient, whole) = part(0..3);
        let (first_gradient, first) = part(0..1);
        let (rest_gradient, rest) = part(1..3);
        assert_eq!([first_gradient, rest_gradient].concat(), whole_gradient);
        assert!((first.ranking + rest.ranking - whole.ranking).abs() < 1e-15);
        assert!((first.centering + rest.centering - whole.centering).abs() < 1e-15);
        let mut merged = first.stats;
        merged.merge(&rest.stats);
        assert_eq!((merged.pairs, merged.correct), (3, 1));
        assert!((merged.margin() - whole.stats.margin()).abs() < 1e-15);
    }

    #[test]
    fn a_policy_equal_to_its_reference_starts_at_log_two() {
        let (c, r) = (var(&[-3.0, -4.0]), var(&[-5.0, -1.0]));
        let reference = ReferenceLogProbs {
            chosen: &[-3.0f32, -4.0],
            rejected: &[-5.0, -1.0],
        };
        let result =
            direct_preference(&c, &r, reference, DirectObjective::Sigmoid, 0.1, 2).unwrap();
        assert!((result.value - 2f64.ln()).abs() < 1e-15);
        assert_eq!((result.stats.accuracy(), result.stats.margin()), (0.0, 0.0));
        assert_eq!(gradient(&result.loss, &c), [-0.025; 2]);
    }

    #[test]
    fn ipo_rests_where_its_margin_is_reached() {
        let (c, r) = (var(&[5.0]), var(&[0.0]));
        let reference = ReferenceLogProbs {
            chosen: &[0.0],
            rejected: &[0.0],
        };
        let result = direct_preference(&c, &r, reference, DirectObjective::Ipo, 0.1, 1).unwrap();
        assert_eq!(
            (result.value, gradient(&result.loss, &r)[0].abs()),
            (0.0, 0.0)
        );
    }

    #[test]
    fn margins_of_another_length_are_refused() {
        let error =
            bradley_terry(&var(&[1.0]), &var(&[0.0]), Some(&[0.0, 0.0]), 0.0, 1).unwrap_err();
        assert!(error.to_string().starts_with("margins has 2"));
    }
}
