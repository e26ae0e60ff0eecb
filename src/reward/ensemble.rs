//! Several reward models as one score, so that a completion must please all of them.
//!
//! Coste, Anwar, Kirk and Krueger 2023, "Reward model ensembles help mitigate overoptimization": the mean, the minimum
//! (worst-case optimisation, their equation 2) and the mean less a measure of their disagreement. Theirs subtracts the variance
//! (equation 3); here it is the standard deviation, which has the score's unit.

use super::{Batch, Reward, RewardError, RewardModel};
use crate::config::Combine;

/// Reward models whose scores become one.
pub struct Ensemble {
    models: Vec<RewardModel>,
    combine: Combine,
    deviations: f64,
}

impl Ensemble {
    /// An ensemble; `deviations` is k of [`Combine::MeanMinusDeviation`].
    pub fn new(models: Vec<RewardModel>, combine: Combine, deviations: f64) -> Self {
        Self {
            models,
            combine,
            deviations,
        }
    }

    /// The models.
    pub fn models(&self) -> &[RewardModel] {
        &self.models
    }
}

impl Reward for Ensemble {
    fn scores(&self, batch: &Batch) -> Result<Vec<f32>, RewardError> {
        let columns: Vec<Vec<f32>> = self
            .models
            .iter()
            .map(|model| model.scores(batch))
            .collect::<Result<_, _>>()?;
        let row = |i: usize| -> Vec<f64> { columns.iter().map(|c| f64::from(c[i])).collect() };
        let one = |i| combined(&row(i), self.combine, self.deviations) as f32;
        Ok((0..batch.completions.len()).map(one).collect::<Vec<f32>>())
    }
}

/// The scores of one completion as one.
fn combined(scores: &[f64], combine: Combine, deviations: f64) -> f64 {
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count;
    match combine {
        Combine::Mean => mean,
        // A score that is no number stays one: f64::min would hide it.
        Combine::Minimum => scores.iter().copied().fold(f64::INFINITY, smaller),
        Combine::MeanMinusDeviation => {
            let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / count;
            mean - deviations * variance.sqrt()
        }
    }
}

fn smaller(a: f64, b: f64) -> f64 {
    if b < a || b.is_nan() { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_become_one_in_three_ways() {
        // Mean 2, squared distances 1, 0, 4, 1 → variance 1.5.
        let scores = [1.0, 2.0, 4.0, 1.0];
        assert_eq!(combined(&scores, Combine::Mean, 9.0), 2.0);
        assert_eq!(combined(&scores, Combine::Minimum, 9.0), 1.0);
        let lowered = combined(&scores, Combine::MeanMinusDeviation, 2.0);
        assert!((lowered - (2.0 - 2.0 * 1.224_744_871_391_589)).abs() < 1e-12);
        assert_eq!(combined(&scores, Combine::MeanMinusDeviation, 0.0), 2.0);
        // Models that agree lose nothing.
        assert_eq!(combined(&[3.0; 4], Combine::MeanMinusDeviation, 5.0), 3.0);
    }
}
