//! The score of an ensemble of reward models, from each model's score of one completion.
//!
//! Coste, Anwar, Kirk and Krueger 2023, "Reward model ensembles help mitigate overoptimization":
//! the mean, the minimum (worst-case optimisation, their equation 2) and the mean less a measure of
//! the models' disagreement. The paper subtracts the variance (equation 3); here it is the standard
//! deviation, which has the score's unit.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::stats::{mean, variance};

/// How an ensemble's scores of one completion become one score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// The mean of the models' scores.
    Mean,
    /// The lowest of the models' scores.
    Minimum,
    /// The mean of the models' scores minus `deviations` times their (biased) standard deviation.
    MeanMinusDeviation,
}

impl Combine {
    /// One score from the models' scores of a completion; `deviations` is the factor of
    /// [`Self::MeanMinusDeviation`].
    ///
    /// A NaN among the scores gives NaN. Without scores the minimum is infinity, the others NaN.
    pub fn of(self, scores: &[f64], deviations: f64) -> f64 {
        match self {
            Self::Mean => mean(scores),
            // NaN stays NaN: f64::min would drop it.
            Self::Minimum => scores.iter().copied().fold(f64::INFINITY, smaller),
            Self::MeanMinusDeviation => mean(scores) - deviations * variance(scores).sqrt(),
        }
    }
}

fn smaller(a: f64, b: f64) -> f64 {
    if b < a || b.is_nan() { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::Combine::{Mean, MeanMinusDeviation, Minimum};

    #[test]
    fn each_combination_has_its_formula() {
        // Mean 2, squared distances 1, 0, 4, 1 → variance 1.5.
        let scores = [1.0, 2.0, 4.0, 1.0];
        assert_eq!(Mean.of(&scores, 0.0), 2.0);
        assert_eq!(Minimum.of(&scores, 0.0), 1.0);
        let lowered = MeanMinusDeviation.of(&scores, 2.0);
        assert!((lowered - (2.0 - 2.0 * 1.224_744_871_391_589)).abs() < 1e-12);
        assert_eq!(MeanMinusDeviation.of(&scores, 0.0), 2.0);
        // Models that agree have no deviation.
        assert_eq!(MeanMinusDeviation.of(&[3.0; 4], 5.0), 3.0);
    }
}
