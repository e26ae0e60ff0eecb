//! An ensemble of reward models with one combined score.

use super::{RewardBatch, RewardError, RewardModel, Scorer};
use crate::rlhf::ensemble::Combine;

/// Reward models whose scores are combined into one.
pub struct Ensemble {
    models: Vec<RewardModel>,
    combine: Combine,
    deviations: f64,
}

impl Ensemble {
    /// An ensemble; `deviations` is the factor of [`Combine::MeanMinusDeviation`].
    pub fn new(models: Vec<RewardModel>, combine: Combine, deviations: f64) -> Self {
        Self {
            models,
            combine,
            deviations,
        }
    }

    /// The models of the ensemble.
    pub fn models(&self) -> &[RewardModel] {
        &self.models
    }
}

impl Scorer for Ensemble {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        let columns: Vec<Vec<f32>> = self
            .models
            .iter()
            .map(|model| model.scores(batch))
            .collect::<Result<_, _>>()?;
        let row = |i: usize| -> Vec<f64> { columns.iter().map(|c| f64::from(c[i])).collect() };
        let one = |i| self.combine.of(&row(i), self.deviations) as f32;
        Ok((0..batch.completions.len()).map(one).collect::<Vec<f32>>())
    }
}
