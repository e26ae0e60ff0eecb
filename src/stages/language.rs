//! Next-token training, used by pretraining and fine-tuning: the cross-entropy of target tokens.

use std::marker::PhantomData;

use anyhow::Result;
use candle_core::Tensor;
use kernels::attention::Segments;

use crate::data;
use crate::data::example::Example;
use crate::data::packing::{PackedBatch, TextRow};
use crate::model::config::{is_embedding, layer_of};
use crate::model::{Decoder, Gradient};
use crate::ops::head::Target;
use crate::ops::param::Param;
use crate::terminal::Phase;
use crate::train::metrics::names;
use crate::train::objective::{Evaluation, LossShare, Objective};

/// A sequence that next-token training reads.
pub trait PackableRow: Sized {
    /// The tokens of the row.
    fn ids(&self) -> &[u32];

    /// Packs rows into a batch.
    ///
    /// # Errors
    /// If there is no row, or one has fewer than two tokens.
    fn pack(rows: &[&Self]) -> data::Result<PackedBatch>;
}

impl PackableRow for Example {
    fn ids(&self) -> &[u32] {
        &self.ids
    }

    fn pack(rows: &[&Self]) -> data::Result<PackedBatch> {
        PackedBatch::from_examples(rows)
    }
}

impl PackableRow for TextRow {
    fn ids(&self) -> &[u32] {
        TextRow::ids(self)
    }

    fn pack(rows: &[&Self]) -> data::Result<PackedBatch> {
        PackedBatch::from_rows(rows)
    }
}

/// Mean cross-entropy of the target tokens.
pub struct NextTokenLoss<R> {
    /// Each layer's learning rate as a share of the one above it.
    layerwise_lr_decay: f64,
    /// Number of the model's layers.
    layers: usize,
    rows: PhantomData<R>,
}

impl<R> NextTokenLoss<R> {
    /// The loss of `model`, whose layers have learning rates with this layer-wise decay; 1 is none.
    pub fn new(model: &Decoder, layerwise_lr_decay: f64) -> Self {
        Self {
            layerwise_lr_decay,
            layers: model.decoder_config().num_hidden_layers,
            rows: PhantomData,
        }
    }
}

impl<R: PackableRow> Objective for NextTokenLoss<R> {
    type Example = R;
    type Batch = PackedBatch;
    /// Target tokens.
    type Total = usize;

    fn tokens(&self, row: &R) -> usize {
        row.ids().len() - 1
    }

    fn batch(&self, rows: &[&R]) -> Result<PackedBatch> {
        Ok(R::pack(rows)?)
    }

    fn total(&self, batches: &[PackedBatch]) -> usize {
        batches.iter().map(|batch| batch.targets.len()).sum()
    }

    fn loss(
        &self,
        model: &Decoder,
        batch: &PackedBatch,
        total: usize,
        gradient: Gradient,
    ) -> Result<LossShare> {
        let sum = log_probs(model, batch, gradient)?.sum_all()?;
        Ok((sum * (-1.0 / total as f64))?.into())
    }

    fn evaluate(&self, model: &Decoder, batches: &[PackedBatch]) -> Result<Evaluation> {
        let (mut sum, count) = (0.0, self.total(batches));
        let phase = Phase::counted("batches", batches.len());
        for batch in batches {
            phase.add(1);
            let found = log_probs(model, batch, Gradient::Skip)?.sum_all()?;
            sum -= f64::from(found.to_scalar::<f32>()?);
        }
        if count == 0 {
            return Ok(Evaluation::new());
        }
        let loss = sum / count as f64;
        Ok(Evaluation::from([
            (names::EVAL_LOSS.to_owned(), loss),
            (names::EVAL_PERPLEXITY.to_owned(), loss.exp()),
        ]))
    }

    /// Layer-wise decay (Howard and Ruder 2018, §3.1): the top layer, the final norm and the head
    /// learn at the full rate, each layer below at `decay` times the one above, the embeddings
    /// below the lowest.
    fn rate_share(&self, param: &Param) -> f64 {
        let depth = match layer_of(param.name()) {
            Some(layer) => self.layers - 1 - layer,
            None if is_embedding(param.name()) => self.layers,
            None => 0,
        };
        self.layerwise_lr_decay.powi(depth as i32)
    }
}

/// Log-probs of a batch's targets over the whole vocabulary, at temperature 1: `[n]`. Above the
/// last layer's attention, only the rows that predict a target are computed.
///
/// # Errors
/// If the computation fails.
pub fn log_probs(model: &Decoder, batch: &PackedBatch, gradient: Gradient) -> Result<Tensor> {
    let targets = batch.targets.iter().enumerate();
    let targets: Vec<Target> = targets.map(|(row, &id)| Target::whole(row, id)).collect();
    let segments = Segments::from_offsets(&batch.segments);
    let some = batch.rows.len() < batch.ids.len();
    let wanted = some.then(|| batch.rows.as_slice().into());
    let hidden = model.forward_at(&batch.ids, &segments, wanted, gradient)?;
    Ok(model.log_probs(&hidden, &targets, 1.0)?.log_probs)
}
