//! A reward model's score: its scalar head at the last token of prompt and response.

use std::path::Path;

use candle_core::{Device, Result, bail};

use super::{Batch, Reward, RewardError};
use crate::data::packing::cut;
use crate::model::{Decoder, Gradient, ModelError};
use crate::ops::attention::Segments;
use crate::ops::param::Training;

/// A frozen reward model.
pub struct RewardModel(Decoder);

impl RewardModel {
    /// Wraps a decoder with a scalar head.
    pub fn new(decoder: Decoder) -> Self {
        Self(decoder)
    }

    /// Reads a frozen reward model.
    ///
    /// # Errors
    /// If the folder holds none, or it cannot be read.
    pub fn load(folder: &Path, device: &Device) -> std::result::Result<Self, ModelError> {
        let frozen = |_: &_| Training::Frozen;
        Ok(Self(Decoder::load_reward_model(folder, frozen, device)?))
    }

    /// The model itself.
    pub fn decoder(&self) -> &Decoder {
        &self.0
    }

    /// One raw score a sequence, in packed passes of at most `limit` tokens.
    ///
    /// # Errors
    /// If an id lies outside the vocabulary, a sequence is empty or too long, or the device fails.
    pub fn score(&self, sequences: &[&[u32]], limit: usize) -> Result<Vec<f32>> {
        if let Some(empty) = sequences.iter().position(|s| s.is_empty()) {
            bail!("sequence {empty} is empty; a reward model scores at the last token");
        }
        let mut scores = Vec::with_capacity(sequences.len());
        for run in cut(
            (0..sequences.len()).collect(),
            |i| sequences[i].len(),
            limit,
        ) {
            let rows: Vec<&[u32]> = run.iter().map(|&i| sequences[i]).collect();
            let segments = Segments::from_lengths(rows.iter().map(|r| r.len()));
            let last = Some(segments.last_rows()?.into());
            let hidden = self
                .0
                .forward_at(&rows.concat(), &segments, last, Gradient::Skip)?;
            let last = self.0.scores(&hidden)?;
            scores.extend(last.to_vec1::<f32>()?);
        }
        Ok(scores)
    }
}

impl Reward for RewardModel {
    fn scores(&self, batch: &Batch) -> std::result::Result<Vec<f32>, RewardError> {
        let ids: Vec<&[u32]> = batch.completions.iter().map(|c| c.ids).collect();
        Ok(self.score(&ids, batch.pass_tokens)?)
    }
}
