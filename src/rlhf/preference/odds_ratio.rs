//! ORPO: Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", eq.
//! 6 and 7.
//!
//! The loss is the negative log-likelihood of the chosen sequences plus β times the odds-ratio loss
//! −log σ(log (odds(chosen) / odds(rejected))), where odds(y) = P(y) / (1 − P(y)) and log P(y) is
//! the mean log-prob of the answer's tokens. As in TRL's trainer the likelihood is that of the
//! whole chosen sequence, prompt included, and a mean over the tokens of the step.
//!
//! The odds of a certain answer are infinite. Value and slopes are therefore taken at a P(y) of at
//! most the largest `f32` below 1.

use candle_core::Tensor;

use super::super::differentiable::{attach_gradient, host_values};
use super::super::error::{Result, RlhfError, check_length, check_not_negative, check_positive};
use super::super::ragged_rows::RaggedRows;
use super::{PreferenceStats, log_sigmoid};

/// Largest mean log-prob at which the odds are taken: the largest `f32` below 1 has about this
/// logarithm.
const ALMOST_CERTAIN: f64 = -1.0 / (1 << 24) as f64;

/// The counts of a whole optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OddsRatioTotals {
    /// Pairs.
    pub pairs: usize,
    /// Predicted tokens of the chosen sequences.
    pub chosen_tokens: usize,
}

/// Sums over the pairs of a microbatch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct OddsRatioStats {
    /// Sums of the implicit rewards: β times an answer's mean log-prob.
    pub rewards: PreferenceStats,
    /// Σ mean log-prob of the chosen answers.
    pub chosen_log_probs: f64,
    /// Σ mean log-prob of the rejected answers.
    pub rejected_log_probs: f64,
    /// Σ −log π of the tokens of the chosen sequences.
    pub nll: f64,
    /// Σ log σ(log-odds).
    pub log_odds_ratio: f64,
    /// Σ log-odds: log odds(chosen) − log odds(rejected).
    pub log_odds: f64,
}

/// Result of [`odds_ratio`].
#[derive(Debug, Clone)]
pub struct OddsRatioLoss {
    /// Scalar to call `backward` on.
    pub loss: Tensor,
    /// The value of `loss` on the host, in full precision.
    pub value: f64,
    /// Unweighted sums over the pairs.
    pub stats: OddsRatioStats,
}

/// ORPO on pairs.
///
/// `log_probs` `[n]` are the differentiable log-probs of the predicted tokens under the policy, and
/// `rows` cuts them into `2B` sequences: each pair's chosen one, then its rejected one. `answers`
/// `[2B]` counts the tokens at the end of each sequence that are its answer's.
///
/// ```
/// use candle_core::{Device, Var};
/// use collimate::rlhf::preference::{OddsRatioTotals, odds_ratio};
/// use collimate::rlhf::RaggedRows;
/// let log_probs = Var::new(&[-1.0, -2.0, -2.0], &Device::Cpu).unwrap();
/// let totals = OddsRatioTotals { pairs: 1, chosen_tokens: 2 };
/// let rows = RaggedRows::new(&[0, 2, 3]).unwrap();
/// let found = odds_ratio(&log_probs, rows, &[1, 1], 0.5, totals).unwrap();
/// // Both answers are equally likely: log σ(0) = −log 2.
/// assert!((found.value - (1.5 + 0.5 * 2f64.ln())).abs() < 1e-15);
/// ```
///
/// # Errors
/// A length error if the arguments do not fit together; a range error for counts of 0, a negative
/// β, or an answer without tokens or longer than its sequence; candle's errors.
pub fn odds_ratio(
    log_probs: &Tensor,
    rows: RaggedRows,
    answers: &[usize],
    beta: f64,
    totals: OddsRatioTotals,
) -> Result<OddsRatioLoss> {
    check_not_negative("beta", beta)?;
    check_positive("the step's pair count", totals.pairs as f64)?;
    check_positive("the step's chosen tokens", totals.chosen_tokens as f64)?;
    check_length("sequences", rows.len(), rows.len().next_multiple_of(2))?;
    check_length("answer lengths", answers.len(), rows.len())?;
    let values = host_values(log_probs)?;
    check_length("log-probs", values.len(), rows.tokens())?;

    let (pair, token) = (1.0 / totals.pairs as f64, 1.0 / totals.chosen_tokens as f64);
    let mut gradient = vec![0.0; values.len()];
    let (mut value, mut stats) = (0.0, OddsRatioStats::default());
    let sequences: Vec<_> = rows.iter().zip(answers).collect();
    for both in sequences.chunks_exact(2) {
        let (chosen_row, chosen) = (both[0].0.clone(), answer_mean(&values, &both[0])?);
        let rejected = answer_mean(&values, &both[1])?;
        let nll: f64 = -values[chosen_row.clone()].iter().sum::<f64>();
        gradient[chosen_row].fill(-token);

        let odds = LogOdds::new(chosen.mean, rejected.mean);
        value += token * nll - pair * beta * odds.log_sigmoid;
        for (answer, slope) in [(&chosen, odds.slopes[0]), (&rejected, odds.slopes[1])] {
            let share = -pair * beta * slope / answer.tokens.len() as f64;
            gradient[answer.tokens.clone()]
                .iter_mut()
                .for_each(|g| *g += share);
        }
        stats
            .rewards
            .observe(beta * chosen.mean, beta * rejected.mean);
        stats.chosen_log_probs += chosen.mean;
        stats.rejected_log_probs += rejected.mean;
        stats.nll += nll;
        stats.log_odds_ratio += odds.log_sigmoid;
        stats.log_odds += odds.value;
    }
    Ok(OddsRatioLoss {
        loss: attach_gradient(log_probs, value, gradient)?,
        value,
        stats,
    })
}

/// The tokens of an answer among all log-probs, and the mean of theirs.
struct AnswerMean {
    tokens: std::ops::Range<usize>,
    mean: f64,
}

fn answer_mean(
    values: &[f64],
    (row, count): &(std::ops::Range<usize>, &usize),
) -> Result<AnswerMean> {
    if **count == 0 || **count > row.len() {
        return Err(RlhfError::Range {
            what: "an answer's token count",
            found: **count as f64,
            requirement: "1 or above, and at most its sequence's",
        });
    }
    let tokens = row.end - **count..row.end;
    Ok(AnswerMean {
        mean: values[tokens.clone()].iter().sum::<f64>() / **count as f64,
        tokens,
    })
}

/// The log-odds of a chosen answer over a rejected one.
struct LogOdds {
    value: f64,
    /// log σ of it.
    log_sigmoid: f64,
    /// Derivatives of `log_sigmoid` by the mean log-probs of the chosen and of the rejected answer.
    slopes: [f64; 2],
}

impl LogOdds {
    /// Log-odds of answers of these mean log-probs.
    fn new(chosen: f64, rejected: f64) -> Self {
        let [chosen, rejected] = [chosen, rejected].map(|mean| mean.min(ALMOST_CERTAIN));
        let [not_chosen, not_rejected] = [chosen, rejected].map(log_one_minus_exp);
        let value = (chosen - rejected) - (not_chosen - not_rejected);
        // d log σ(value) = σ(−value) d value, and d value = dc / (1 − P(c)) − dr / (1 − P(r)).
        let slope = |not: f64| (log_sigmoid(-value) - not).exp();
        Self {
            value,
            log_sigmoid: log_sigmoid(value),
            slopes: [slope(not_chosen), -slope(not_rejected)],
        }
    }
}

/// log(1 − exp(x)) of x ≤ 0, exact at both ends (Mächler 2012, "Accurately Computing log(1 −
/// exp(−|a|))").
fn log_one_minus_exp(x: f64) -> f64 {
    match x > -std::f64::consts::LN_2 {
        true => (-x.exp_m1()).ln(),
        false => (-x.exp()).ln_1p(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::differentiable::tests::{gradient, var};
    use super::*;

    fn totals(pairs: usize, chosen_tokens: usize) -> OddsRatioTotals {
        OddsRatioTotals {
            pairs,
            chosen_tokens,
        }
    }

    #[test]
    fn micro_batches_add_up_to_the_step() {
        let values = [-1.0, -0.5, -2.0, -0.25, -3.0];
        let part = |range: std::ops::Range<usize>, offsets: &[usize], answers: &[usize]| {
            let x = var(&values[range]);
            let rows = RaggedRows::new(offsets).unwrap();
            let found = odds_ratio(&x, rows, answers, 0.3, totals(2, 3)).unwrap();
            (gradient(&found.loss, &x), found.value)
        };
        let whole = part(0..5, &[0, 2, 3, 4, 5], &[1, 1, 1, 1]);
        let first = part(0..3, &[0, 2, 3], &[1, 1]);
        let second = part(3..5, &[0, 1, 2], &[1, 1]);
        assert_eq!([first.0, second.0].concat(), whole.0);
        assert!((first.1 + second.1 - whole.1).abs() < 1e-15);
    }

    /// By hand, with the odds 2²⁴ of a certain answer, 1 / (e − 1) of one with log-prob −1, and
    /// r = odds(rejected) / odds(chosen): the loss is log(1 + r). Its slopes are −r / (1 + r) by
    /// the chosen log-prob and r / (1 + r) by the rejected one, each over 1 − P.
    #[test]
    fn certain_answers_have_finite_losses_and_gradients() {
        let (certain, even) = (f64::from(1 << 24), 1.0 / (1f64.exp() - 1.0));
        let not_even = 1.0 - (-1f64).exp();
        for (values, odds, not) in [
            ([0.0, -1.0], [certain, even], [1.0 / certain, not_even]),
            ([-1.0, 0.0], [even, certain], [not_even, 1.0 / certain]),
            ([0.0, 0.0], [certain; 2], [1.0 / certain; 2]),
        ] {
            let x = var(&values);
            let rows = RaggedRows::new(&[0, 1, 2]).unwrap();
            let ratio = odds[1] / odds[0];
            let share = ratio / (1.0 + ratio);
            for beta in [1.0, 0.0] {
                let found = odds_ratio(&x, rows, &[1, 1], beta, totals(1, 1)).unwrap();
                let loss = -values[0] + beta * ratio.ln_1p();
                let gradient = gradient(&found.loss, &x);
                let expected = [-1.0 - beta * share / not[0], beta * share / not[1]];
                let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs();
                assert!(
                    near(found.value, loss),
                    "{values:?}: {} {loss}",
                    found.value
                );
                for (a, b) in gradient.iter().zip(expected) {
                    assert!(near(*a, b), "{values:?}: {gradient:?} {expected:?}");
                }
                assert!(found.stats.log_odds.is_finite(), "{:?}", found.stats);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (x, rows) = (var(&[-1.0, -2.0]), RaggedRows::new(&[0, 1, 2]).unwrap());
        let refused = |answers: &[usize], beta, totals| {
            let error = odds_ratio(&x, rows, answers, beta, totals).unwrap_err();
            error.to_string()
        };
        assert!(refused(&[1], 0.1, totals(1, 1)).starts_with("answer lengths has 1"));
        assert!(refused(&[1, 2], 0.1, totals(1, 1)).contains("answer's token count is 2"));
        assert!(refused(&[1, 0], 0.1, totals(1, 1)).contains("answer's token count is 0"));
        assert!(refused(&[1, 1], -0.1, totals(1, 1)).starts_with("beta is -0.1"));
        assert!(refused(&[1, 1], 0.1, totals(0, 1)).contains("pair count is 0"));
        assert!(refused(&[1, 1], 0.1, totals(1, 0)).contains("chosen tokens is 0"));

        let refused = |x: &[f64], offsets: &[usize]| {
            let (x, rows) = (var(x), RaggedRows::new(offsets).unwrap());
            let answers = vec![1; rows.len()];
            let error = odds_ratio(&x, rows, &answers, 0.1, totals(1, 1)).unwrap_err();
            error.to_string()
        };
        assert!(refused(&[-1.0], &[0, 1]).starts_with("sequences has 1"));
        assert!(refused(&[-1.0; 3], &[0, 1, 2]).starts_with("log-probs has 3"));
    }

    /// Near 0 the result is log(−x), far below it −exp(x), each to the last digits.
    #[test]
    fn the_logarithm_of_the_other_probability_is_exact_at_both_ends() {
        assert_eq!(log_one_minus_exp(-1e-20), 1e-20f64.ln());
        let far = log_one_minus_exp(-40.0) / -(-40f64).exp();
        assert!((far - 1.0).abs() < 1e-15, "{far}");
    }
}
