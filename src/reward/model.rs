//! A reward model's score: its scalar head at one token of prompt and response, the last one unless its folder means another
//! ([`ScorePosition`]).

use std::path::Path;

use candle_core::{Device, Result, Tensor, bail};

use super::{Batch, Reward, RewardError};
use crate::config::ScoreAt;
use crate::data::packing::cut;
use crate::model::boundary::{Boundary, States};
use crate::model::score_position::{NoPadding, ScorePosition};
use crate::model::{Decoder, Gradient, ModelError};
use crate::ops::attention::Segments;
use crate::ops::param::Training;

/// A frozen reward model.
pub struct RewardModel {
    decoder: Decoder,
    standing: Standing,
    position: ScorePosition,
}

/// What a reward model holds in common with the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: it reads token ids.
    Alone,
    /// The layers below the boundary at which generation keeps states: it starts from these.
    Shared,
}

/// A sequence to be scored: its ids, and what generation computed of them, if it kept that.
pub type Scored<'a> = (&'a [u32], Option<&'a States>);

impl RewardModel {
    /// Wraps a decoder with a scalar head that stands alone. Its score is read where its folder means it to be.
    pub fn new(decoder: Decoder) -> Self {
        Self {
            position: ScorePosition::of(decoder.config(), None).unwrap_or(ScorePosition::LAST),
            decoder,
            standing: Standing::Alone,
        }
    }

    /// This model, read at the token that is `asked` for, if one is.
    ///
    /// # Errors
    /// The errors of [`ScorePosition::of`].
    pub fn read_at(mut self, asked: Option<ScoreAt>) -> std::result::Result<Self, NoPadding> {
        self.position = ScorePosition::of(self.decoder.config(), asked)?;
        Ok(self)
    }

    /// The token at which the score is read.
    pub fn position(&self) -> ScorePosition {
        self.position
    }

    /// Wraps one that shares the policy's layers below the boundary.
    pub fn sharing(decoder: Decoder) -> Self {
        Self {
            standing: Standing::Shared,
            ..Self::new(decoder)
        }
    }

    /// Reads a frozen reward model.
    ///
    /// # Errors
    /// If the folder holds none, or it cannot be read.
    pub fn load(folder: &Path, device: &Device) -> std::result::Result<Self, ModelError> {
        let frozen = |_: &_| Training::Frozen;
        Ok(Self::new(Decoder::load_reward_model(
            folder, frozen, device,
        )?))
    }

    /// The model itself.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Whether it shares layers with the policy.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// One raw score a sequence, in packed passes of at most `limit` tokens.
    ///
    /// # Errors
    /// If an id lies outside the vocabulary, a sequence is empty or too long, or the device fails.
    pub fn score(&self, sequences: &[&[u32]], limit: usize) -> Result<Vec<f32>> {
        let sequences: Vec<Scored> = sequences.iter().map(|&ids| (ids, None)).collect();
        self.score_kept(&sequences, limit)
    }

    /// [`Self::score`] of sequences whose states may be known.
    ///
    /// # Errors
    /// Likewise, and if states do not fit their sequences.
    pub fn score_kept(&self, sequences: &[Scored], limit: usize) -> Result<Vec<f32>> {
        if let Some(empty) = sequences.iter().position(|(ids, _)| ids.is_empty()) {
            bail!("sequence {empty} is empty; a reward model scores at a token");
        }
        let mut scores = Vec::with_capacity(sequences.len());
        for run in cut(
            (0..sequences.len()).collect(),
            |i| sequences[i].0.len(),
            limit,
        ) {
            let run: Vec<Scored> = run.iter().map(|&i| sequences[i]).collect();
            let found = self.decoder.scores(&self.scored_states(&run)?)?;
            scores.extend(found.to_vec1::<f32>()?);
        }
        Ok(scores)
    }

    /// Hidden states of the token of each sequence that is scored: `[sequences, hidden]`.
    fn scored_states(&self, run: &[Scored]) -> Result<Tensor> {
        let segments = Segments::from_lengths(run.iter().map(|(ids, _)| ids.len()));
        let (decoder, skip) = (&self.decoder, Gradient::Skip);
        let wanted = Some(self.position.rows(run.iter().map(|(ids, _)| *ids)));
        if let Some(Boundary { layer, hidden }) = self.boundary(run)? {
            return decoder.forward_from(layer, &hidden, &segments, wanted, skip);
        }
        let ids: Vec<u32> = run.iter().flat_map(|(ids, _)| *ids).copied().collect();
        decoder.forward_at(&ids, &segments, wanted, skip)
    }

    fn boundary(&self, run: &[Scored]) -> Result<Option<Boundary>> {
        if self.standing == Standing::Alone {
            return Ok(None);
        }
        let states = run.iter().map(|&(ids, states)| (states, ids.len()));
        Boundary::join(states, self.decoder.params().device())
    }
}

impl Reward for RewardModel {
    fn scores(&self, batch: &Batch) -> std::result::Result<Vec<f32>, RewardError> {
        let sequences = batch.completions.iter().map(|c| (c.ids, c.states));
        let sequences: Vec<Scored> = sequences.collect();
        Ok(self.score_kept(&sequences, batch.pass_tokens)?)
    }
}
