//! The objective of a supervised stage: batches of its examples, their loss, and the metrics on
//! held-out examples.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::Tensor;

use crate::model::{Decoder, Gradient};
use crate::ops::param::Param;

/// The training objective of a supervised stage.
pub trait Objective {
    /// One example.
    type Example;

    /// Examples packed for one forward pass.
    type Batch;

    /// The counts over which a step's loss is a mean, such as its target tokens or its pairs.
    type Total: Copy;

    /// Tokens that an example feeds to the model.
    fn tokens(&self, example: &Self::Example) -> usize;

    /// Packs examples into a batch.
    ///
    /// # Errors
    /// If an example cannot be packed.
    fn batch(&self, examples: &[&Self::Example]) -> Result<Self::Batch>;

    /// The counts of a whole step, given its micro-batches.
    fn total(&self, batches: &[Self::Batch]) -> Self::Total;

    /// A micro-batch's share of the step's mean loss, whose counts are `total`.
    ///
    /// # Errors
    /// If the computation fails.
    fn loss(
        &self,
        model: &Decoder,
        batch: &Self::Batch,
        total: Self::Total,
        gradient: Gradient,
    ) -> Result<LossShare>;

    /// Measures the model on held-out batches, of which there is at least one.
    ///
    /// # Errors
    /// If the computation fails.
    fn evaluate(&self, model: &Decoder, batches: &[Self::Batch]) -> Result<Evaluation>;

    /// Learning rate of a parameter as a share of the schedule's.
    fn rate_share(&self, _param: &Param) -> f64 {
        1.0
    }
}

/// A micro-batch's contribution to the means of its step.
pub struct LossShare {
    /// Share of the mean loss, to call `backward` on.
    pub loss: Tensor,
    /// Shares of the step's other means, by metric name.
    pub measures: Vec<(&'static str, f64)>,
}

impl From<Tensor> for LossShare {
    fn from(loss: Tensor) -> Self {
        Self {
            loss,
            measures: Vec::new(),
        }
    }
}

/// Held-out measures by metric name.
pub type Evaluation = BTreeMap<String, f64>;
