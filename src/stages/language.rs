//! Next-token training, which pretraining and fine-tuning share: they differ in what a row is.

use anyhow::Result;
use candle_core::Tensor;

use super::dataset::Walk;
use crate::config::Training;
use crate::data::packing::{Batch, cut};
use crate::model::{Decoder, Gradient};
use crate::ops::attention::Segments;
use crate::ops::head::Target;
use crate::terminal::Phase;
use crate::train::metrics::names;
use crate::train::task::{Evaluation, Share, Task};

/// Rows by index.
pub trait RowSet {
    /// Number of rows.
    fn len(&self) -> usize;

    /// Tokens that row `index` feeds.
    fn tokens(&self, index: usize) -> usize;

    /// The rows of these indices as one packed batch.
    ///
    /// # Errors
    /// If a row cannot be packed.
    fn batch(&self, indices: &[usize]) -> Result<Batch>;

    /// All rows, or the first `most`, in batches of at most `limit` tokens.
    ///
    /// # Errors
    /// As [`Self::batch`].
    fn batches(&self, most: usize, limit: usize) -> Result<Vec<Batch>> {
        let all = (0..self.len().min(most)).collect();
        cut(all, |i| self.tokens(i), limit)
            .iter()
            .map(|run| self.batch(run))
            .collect()
    }
}

/// Cross-entropy of the tokens that count.
pub struct LanguageTask<'a, R> {
    /// The rows to train on.
    pub rows: R,
    /// Their order, and their batches.
    pub walk: Walk,
    /// Held-out batches.
    pub held_out: Vec<Batch>,
    /// Size of micro-batches, and what a pass keeps.
    pub training: &'a Training,
}

impl<R: RowSet> Task for LanguageTask<'_, R> {
    type Micro = Batch;

    fn micro_batches(&self, step: u64) -> Result<Vec<Batch>> {
        let indices = self.walk.step(step);
        let runs = cut(
            indices,
            |i| self.rows.tokens(i),
            self.training.micro_batch_tokens,
        );
        runs.iter().map(|run| self.rows.batch(run)).collect()
    }

    fn tokens(&self, micro: &Batch) -> usize {
        micro.token_count()
    }

    fn count(&self, micro: &Batch) -> f64 {
        micro.valid_count() as f64
    }

    fn loss(
        &self,
        model: &Decoder,
        micro: &Batch,
        total: f64,
        gradient: Gradient,
    ) -> Result<Share> {
        let loss = (log_prob_sum(model, micro, gradient)? * (-1.0 / total))?;
        Ok(loss.into())
    }

    fn evaluate(&self, model: &Decoder) -> Result<Option<Evaluation>> {
        let (mut sum, mut count) = (0.0, 0);
        let phase = Phase::counted("batches", self.held_out.len());
        for batch in &self.held_out {
            phase.add(1);
            sum -= f64::from(log_prob_sum(model, batch, Gradient::Skip)?.to_scalar::<f32>()?);
            count += batch.valid_count();
        }
        if count == 0 {
            return Ok(None);
        }
        let loss = sum / count as f64;
        let measures = [
            (names::EVAL_LOSS, loss),
            (names::EVAL_PERPLEXITY, loss.exp()),
        ];
        Ok(Some(
            measures
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        ))
    }

    fn epochs(&self, step: u64) -> f64 {
        self.walk.epochs(step)
    }
}

/// Σ log p of the targets that count.
///
/// # Errors
/// If the computation fails.
pub fn log_prob_sum(model: &Decoder, batch: &Batch, gradient: Gradient) -> Result<Tensor> {
    let counts = |&row: &usize| batch.valid[row] != 0.0;
    let rows: Vec<usize> = (0..batch.ids.len()).filter(counts).collect();
    let target = |(i, &row): (usize, &usize)| Target::whole(i, batch.targets[row]);
    let targets: Vec<Target> = rows.iter().enumerate().map(target).collect();
    let hidden = model.forward_at(
        &batch.ids,
        &Segments::from_offsets(&batch.segments),
        (rows.len() < batch.ids.len()).then(|| rows.iter().map(|&row| row as u32).collect()),
        gradient,
    )?;
    Ok(model
        .log_probs(&hidden, &targets, 1.0)?
        .log_probs
        .sum_all()?)
}
