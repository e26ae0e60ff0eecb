//! Preference without a reward model: losses of the policy's own log-probs.
//!
//! - DPO: Rafailov et al. 2023, "Direct Preference Optimization", eq. 7; its label smoothing (cDPO)
//!   is that of Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO".
//! - IPO: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
//!   Preferences", eq. 17.
//! - SimPO: Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward",
//!   eq. 6.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::differentiable::{attach_gradient, host_values};
use super::super::error::{Result, RlhfError, check_length, check_not_negative, check_positive};
use super::super::ragged_rows::RaggedRows;
use super::{PreferenceStats, log_sigmoid, sigmoid};

/// Loss of direct preference optimisation.
///
/// Below, h is the log-ratio log π − log π_ref of the chosen answer minus that of the rejected one,
/// each summed over the answer's tokens unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DpoLossType {
    /// DPO: −log σ(β h); with `label_smoothing` ε cDPO: −(1 − ε) log σ(β h) − ε log σ(−β h).
    Sigmoid,
    /// IPO: (h − 1/(2β))², on log-ratios that are means over an answer's tokens.
    // The mean is not in the paper; its authors confirmed it, and TRL's trainer has it too.
    Ipo,
    /// SimPO: −log σ(β h − γ), on log-probs that are means over an answer's tokens, without a
    /// reference.
    Simpo,
}

impl DpoLossType {
    /// Whether the loss compares the policy's log-probs with those of a reference.
    pub fn has_reference(self) -> bool {
        self != Self::Simpo
    }

    /// Factor of a log-ratio summed over `tokens` tokens before answers are compared.
    fn scale(self, tokens: usize) -> f64 {
        match self {
            Self::Sigmoid => 1.0,
            Self::Ipo | Self::Simpo => 1.0 / tokens as f64,
        }
    }
}

/// A preference loss and its coefficients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DirectPreferenceConfig {
    /// The loss.
    pub loss_type: DpoLossType,
    /// β: weight of a log-ratio. In IPO it is what the paper calls τ.
    pub beta: f64,
    /// ε: share of the pairs assumed to be labelled the wrong way round, from 0 to below ½; read by
    /// [`DpoLossType::Sigmoid`] alone.
    pub label_smoothing: f64,
    /// γ: target margin of the rewards, 0 or above; read by [`DpoLossType::Simpo`] alone.
    pub simpo_gamma: f64,
}

impl DirectPreferenceConfig {
    /// Value and derivative at the difference `h`.
    fn at(&self, h: f64) -> (f64, f64) {
        let beta = self.beta;
        match self.loss_type {
            DpoLossType::Sigmoid => {
                let (z, flipped) = (beta * h, self.label_smoothing);
                let value = -(1.0 - flipped) * log_sigmoid(z) - flipped * log_sigmoid(-z);
                let slope = flipped * sigmoid(z) - (1.0 - flipped) * sigmoid(-z);
                (value, beta * slope)
            }
            DpoLossType::Ipo => {
                let error = h - 1.0 / (2.0 * beta);
                (error * error, 2.0 * error)
            }
            DpoLossType::Simpo => {
                let z = beta * h - self.simpo_gamma;
                (-log_sigmoid(z), -beta * sigmoid(-z))
            }
        }
    }

    /// The implicit reward of an answer whose log-ratio sums to `ratio` over `tokens` tokens, as
    /// TRL's trainers report it.
    fn reward(&self, ratio: f64, tokens: usize) -> f64 {
        match self.loss_type {
            DpoLossType::Sigmoid | DpoLossType::Ipo => self.beta * ratio,
            DpoLossType::Simpo => self.beta * ratio / tokens as f64,
        }
    }

    fn check(&self) -> Result<()> {
        check_positive("beta", self.beta)?;
        match self.loss_type {
            DpoLossType::Sigmoid if !(0.0..0.5).contains(&self.label_smoothing) => {
                Err(RlhfError::Range {
                    what: "label smoothing",
                    found: self.label_smoothing,
                    requirement: "0 or above and below 0.5",
                })
            }
            DpoLossType::Simpo => {
                check_not_negative("the target margin of rewards", self.simpo_gamma)
            }
            DpoLossType::Sigmoid | DpoLossType::Ipo => Ok(()),
        }
    }
}

/// Sums over the pairs of a microbatch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DirectStats {
    /// Sums of the implicit rewards: β (log π − log π_ref) of whole answers; with SimPO β log π a
    /// token.
    pub rewards: PreferenceStats,
    /// Σ log π of the chosen answers, each as a whole.
    pub chosen_log_probs: f64,
    /// Σ log π of the rejected answers.
    pub rejected_log_probs: f64,
}

/// Result of [`direct_preference`].
#[derive(Debug, Clone)]
pub struct DirectPreferenceLoss {
    /// Scalar to call `backward` on.
    pub loss: Tensor,
    /// The value of `loss` on the host, in full precision.
    pub value: f64,
    /// Unweighted sums over the pairs.
    pub stats: DirectStats,
}

/// DPO, IPO or SimPO on pairs.
///
/// `log_probs` `[n]` are the differentiable log-probs of the answers' tokens under the policy, and
/// `rows` cuts them into `2B` answers: each pair's chosen one, then its rejected one. `reference`
/// `[2B]` has the log-prob of each answer as a whole under the frozen reference, Σ over the same
/// tokens; it is empty where the loss has none.
///
/// ```
/// use candle_core::{Device, Var};
/// use collimate::rlhf::preference::{DpoLossType, DirectPreferenceConfig, direct_preference};
/// use collimate::rlhf::RaggedRows;
/// let log_probs = Var::new(&[-1.0, -2.0, -4.0], &Device::Cpu).unwrap();
/// let config = DirectPreferenceConfig {
///     loss_type: DpoLossType::Sigmoid,
///     beta: 0.5,
///     label_smoothing: 0.0,
///     simpo_gamma: 0.0,
/// };
/// let rows = RaggedRows::new(&[0, 2, 3]).unwrap();
/// let found = direct_preference(&log_probs, rows, &[-5.0, -4.0], &config, 1).unwrap();
/// assert_eq!(found.stats.rewards.margin(), 1.0);
/// assert!((found.value - (1.0 + (-1.0f64).exp()).ln()).abs() < 1e-15);
/// ```
///
/// # Errors
/// A length error if the arguments do not fit together; a range error for `pairs` 0, β not above
/// zero, or a number of the loss out of its range; candle's errors.
pub fn direct_preference(
    log_probs: &Tensor,
    rows: RaggedRows,
    reference: &[f64],
    config: &DirectPreferenceConfig,
    pairs: usize,
) -> Result<DirectPreferenceLoss> {
    config.check()?;
    check_positive("the step's pair count", pairs as f64)?;
    check_length("answers", rows.len(), rows.len().next_multiple_of(2))?;
    let needed = if config.loss_type.has_reference() {
        rows.len()
    } else {
        0
    };
    check_length("reference log-probs", reference.len(), needed)?;
    let sums = rows.sums("log-probs of answers", &host_values(log_probs)?)?;
    let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
    let ratio = |answer: usize| sums[answer] - reference.get(answer).copied().unwrap_or(0.0);

    let weight = 1.0 / pairs as f64;
    let mut slopes = Vec::with_capacity(rows.len());
    let (mut value, mut stats) = (0.0, DirectStats::default());
    for chosen in (0..rows.len()).step_by(2) {
        let answers = [chosen, chosen + 1];
        let scales = answers.map(|answer| config.loss_type.scale(lengths[answer]));
        let [ahead, behind] = [0, 1].map(|i| scales[i] * ratio(answers[i]));
        let (part, slope) = config.at(ahead - behind);
        value += weight * part;
        slopes.extend([weight * slope * scales[0], -weight * slope * scales[1]]);
        let [better, worse] = answers.map(|a| config.reward(ratio(a), lengths[a]));
        stats.rewards.observe(better, worse);
        stats.chosen_log_probs += sums[chosen];
        stats.rejected_log_probs += sums[chosen + 1];
    }
    let gradient = rows.spread("slopes", &slopes)?;
    Ok(DirectPreferenceLoss {
        loss: attach_gradient(log_probs, value, gradient)?,
        value,
        stats,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::differentiable::tests::{gradient, var};
    use super::DpoLossType::{Ipo, Sigmoid, Simpo};
    use super::*;

    fn config(loss_type: DpoLossType, beta: f64) -> DirectPreferenceConfig {
        DirectPreferenceConfig {
            loss_type,
            beta,
            label_smoothing: 0.0,
            simpo_gamma: 0.5,
        }
    }

    #[test]
    fn a_policy_equal_to_its_reference_starts_at_log_two() {
        let x = var(&[-3.0, -4.0, -5.0, -1.0, -2.0]);
        let rows = RaggedRows::new(&[0, 1, 3, 4, 5]).unwrap();
        let reference = [-3.0, -9.0, -1.0, -2.0];
        let found = direct_preference(&x, rows, &reference, &config(Sigmoid, 0.1), 2).unwrap();
        assert!((found.value - 2f64.ln()).abs() < 1e-15);
        let rewards = found.stats.rewards;
        assert_eq!((rewards.accuracy(), rewards.margin()), (0.0, 0.0));
        assert_eq!(
            gradient(&found.loss, &x),
            [-0.025, 0.025, 0.025, -0.025, 0.025]
        );
        assert_eq!(
            (found.stats.chosen_log_probs, found.stats.rejected_log_probs),
            (-4.0, -11.0)
        );
    }

    #[test]
    fn ipo_rests_where_its_margin_is_reached() {
        // Two tokens of 5 − (−0) each against one of 0: means 5 and 0, and 1/(2 · 0.1) = 5.
        let x = var(&[5.0, 5.0, 0.0]);
        let rows = RaggedRows::new(&[0, 2, 3]).unwrap();
        let found = direct_preference(&x, rows, &[0.0, 0.0], &config(Ipo, 0.1), 1).unwrap();
        assert_eq!(found.value, 0.0);
        assert!(gradient(&found.loss, &x).iter().all(|g| *g == 0.0));
    }

    #[test]
    fn smoothing_pulls_back_from_certainty() {
        // The smoothed loss is least where σ(β h) = 1 − ε; beyond, its slope has the other sign.
        let smoothed = DirectPreferenceConfig {
            label_smoothing: 0.25,
            ..config(Sigmoid, 0.5)
        };
        let rest = 3f64.ln() / 0.5; // σ(ln 3) = 3/4
        assert!(smoothed.at(rest).1.abs() < 1e-15);
        assert!(smoothed.at(rest + 1.0).1 > 0.0 && smoothed.at(rest - 1.0).1 < 0.0);
    }

    #[test]
    fn micro_batches_add_up_to_the_step() {
        let (values, reference) = ([-1.0, -0.5, -2.0, -0.25], [-1.5, -0.25, -1.0, -2.0]);
        let part = |range: std::ops::Range<usize>| {
            let x = var(&values[range.clone()]);
            let offsets: Vec<usize> = (0..=range.len()).collect();
            let rows = RaggedRows::new(&offsets).unwrap();
            let found =
                direct_preference(&x, rows, &reference[range], &config(Sigmoid, 0.1), 2).unwrap();
            (gradient(&found.loss, &x), found.value)
        };
        let (whole, first, second) = (part(0..4), part(0..2), part(2..4));
        assert_eq!([first.0, second.0].concat(), whole.0);
        assert!((first.1 + second.1 - whole.1).abs() < 1e-15);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (x, rows) = (var(&[1.0, 0.0]), RaggedRows::new(&[0, 1, 2]).unwrap());
        let refused = |reference: &[f64], config: DirectPreferenceConfig| {
            let error = direct_preference(&x, rows, reference, &config, 1).unwrap_err();
            error.to_string()
        };
        assert!(refused(&[0.0], config(Sigmoid, 0.1)).starts_with("reference log-probs has 1"));
        assert!(refused(&[0.0, 0.0], config(Simpo, 0.1)).starts_with("reference log-probs has 2"));
        assert!(refused(&[0.0, 0.0], config(Sigmoid, 0.0)).starts_with("beta is 0"));
        let half = DirectPreferenceConfig {
            label_smoothing: 0.5,
            ..config(Sigmoid, 0.1)
        };
        assert!(refused(&[0.0, 0.0], half).starts_with("label smoothing is 0.5"));
        let odd = direct_preference(
            &x,
            RaggedRows::new(&[0, 2]).unwrap(),
            &[0.0],
            &config(Sigmoid, 0.1),
            1,
        );
        assert!(odd.unwrap_err().to_string().starts_with("answers has 1"));
    }
}
