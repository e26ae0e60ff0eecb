//! A reward model's score: its scalar head at the last token of prompt and response.

use candle_core::{Result, bail};

use crate::data::packing::cut;
use crate::model::{Decoder, Gradient};
use crate::ops::attention::Segments;

/// A frozen reward model.
pub struct RewardModel(Decoder);

impl RewardModel {
    /// Wraps a decoder with a scalar head.
    pub fn new(decoder: Decoder) -> Self {
        Self(decoder)
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
