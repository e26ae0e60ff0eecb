//! Several models' scores of one completion as one, so that it must please all of them.
//!
//! Coste, Anwar, Kirk and Krueger 2023, "Reward model ensembles help mitigate overoptimization": the mean, the minimum
//! (worst-case optimisation, their equation 2) and the mean less a measure of their disagreement. Theirs subtracts the variance
//! (equation 3); here it is the standard deviation, which has the score's unit.

use super::stats::{mean, variance};

/// How scores become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combination {
    /// Their mean.
    Mean,
    /// The least of them.
    Minimum,
    /// Their mean, less this many of their biased standard deviations.
    MeanMinusDeviation(f64),
}

impl Combination {
    /// The scores of one completion as one. NaN among them, or none at all, gives NaN; the minimum of none is infinity.
    pub fn of(self, scores: &[f64]) -> f64 {
        match self {
            Self::Mean => mean(scores),
            // A score that is no number stays one: f64::min would hide it.
            Self::Minimum => scores.iter().copied().fold(f64::INFINITY, smaller),
            Self::MeanMinusDeviation(deviations) => {
                mean(scores) - deviations * variance(scores).sqrt()
            }
        }
    }
}

fn smaller(a: f64, b: f64) -> f64 {
    if b < a || b.is_nan() { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::Combination::{Mean, MeanMinusDeviation, Minimum};

    #[test]
    fn scores_become_one_in_three_ways() {
        // Mean 2, squared distances 1, 0, 4, 1 → variance 1.5.
        let scores = [1.0, 2.0, 4.0, 1.0];
        assert_eq!(Mean.of(&scores), 2.0);
        assert_eq!(Minimum.of(&scores), 1.0);
        let lowered = MeanMinusDeviation(2.0).of(&scores);
        assert!((lowered - (2.0 - 2.0 * 1.224_744_871_391_589)).abs() < 1e-12);
        assert_eq!(MeanMinusDeviation(0.0).of(&scores), 2.0);
        // Models that agree lose nothing.
        assert_eq!(MeanMinusDeviation(5.0).of(&[3.0; 4]), 3.0);
    }
}
