//! What a supervised stage learns: the data of its steps, and their loss.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::Tensor;

use crate::model::{Decoder, Gradient};

/// What is learned: the data of each step and its loss.
pub trait Task {
    /// What one forward and backward pass reads.
    type Micro;

    /// The data of optimizer step `step` (from 1), cut into micro-batches.
    ///
    /// # Errors
    /// If a record cannot be made into a batch.
    fn micro_batches(&self, step: u64) -> Result<Vec<Self::Micro>>;

    /// Tokens that a micro-batch feeds.
    fn tokens(&self, micro: &Self::Micro) -> usize;

    /// What a micro-batch counts in the mean loss: target tokens, or pairs.
    fn count(&self, micro: &Self::Micro) -> f64;

    /// A micro-batch's share of the step's mean loss, whose whole count is `total`.
    ///
    /// # Errors
    /// If the computation fails.
    fn loss(
        &self,
        model: &Decoder,
        micro: &Self::Micro,
        total: f64,
        gradient: Gradient,
    ) -> Result<Share>;

    /// Measures the model on held-out data; `None` without any.
    ///
    /// # Errors
    /// If the computation fails.
    fn evaluate(&self, model: &Decoder) -> Result<Option<Evaluation>>;

    /// Passes over the data after `step` steps.
    fn epochs(&self, step: u64) -> f64;
}

/// What a micro-batch adds to a step.
pub struct Share {
    /// Its share of the mean loss, to call `backward` on.
    pub loss: Tensor,
    /// Its shares of other means over the step, by metric name.
    pub measures: Vec<(&'static str, f64)>,
}

impl From<Tensor> for Share {
    fn from(loss: Tensor) -> Self {
        Self {
            loss,
            measures: Vec::new(),
        }
    }
}

/// Held-out measures by metric name.
pub type Evaluation = BTreeMap<String, f64>;
