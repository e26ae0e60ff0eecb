//! Several reward models as one score ([`Combination`]), so that a completion must please all of them.

use super::{Batch, Reward, RewardError, RewardModel};
use crate::config::Combine;
use crate::rlhf::ensemble::Combination;

/// Reward models whose scores become one.
pub struct Ensemble {
    models: Vec<RewardModel>,
    combination: Combination,
}

impl Ensemble {
    /// An ensemble; `deviations` is k of [`Combine::MeanMinusDeviation`].
    pub fn new(models: Vec<RewardModel>, combine: Combine, deviations: f64) -> Self {
        let combination = match combine {
            Combine::Mean => Combination::Mean,
            Combine::Minimum => Combination::Minimum,
            Combine::MeanMinusDeviation => Combination::MeanMinusDeviation(deviations),
        };
        Self {
            models,
            combination,
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
        let one = |i| self.combination.of(&row(i)) as f32;
        Ok((0..batch.completions.len()).map(one).collect::<Vec<f32>>())
    }
}
