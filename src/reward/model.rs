//! A reward model's score: its scalar head at one token of prompt and response, the last one unless
//! the model's folder says otherwise ([`ScorePosition`]).

use std::path::Path;

use candle_core::{Result, Tensor, bail};
use kernels::attention::Segments;

use super::{RewardBatch, RewardError, Scorer};
use crate::config::ScoreAt;
use crate::data::packing::cut;
use crate::model::boundary::{Boundary, States};
use crate::model::score_position::{NoPadding, ScorePosition};
use crate::model::{Decoder, Gradient, ModelError};
use crate::ops::backend::Backend;
use crate::ops::param::Trainability;
use crate::ops::work::{self, DeviceWork};

/// A frozen reward model.
pub struct RewardModel {
    decoder: Decoder,
    trunk_use: TrunkUse,
    position: ScorePosition,
}

/// Whether a reward model starts from the hidden states that generation recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrunkUse {
    /// No layers are shared with the policy: the model reads token ids.
    None,
    /// The layers below the boundary are the policy's: the model starts from the recorded states.
    Shared,
}

/// Token ids of a sequence to be scored, and its recorded hidden states if there are any.
pub type IdsAndStates<'a> = (&'a [u32], Option<&'a States>);

impl RewardModel {
    /// Wraps a decoder with a scalar head that shares no layers. The score is read at the token
    /// that its folder says.
    pub fn new(decoder: Decoder) -> Self {
        Self {
            position: ScorePosition::of(decoder.config(), None).unwrap_or(ScorePosition::LAST),
            decoder,
            trunk_use: TrunkUse::None,
        }
    }

    /// This model with its score read at `score_at`; `None` keeps the position that its folder
    /// sets.
    ///
    /// # Errors
    /// The errors of `ScorePosition::of`.
    pub fn read_at(mut self, score_at: Option<ScoreAt>) -> std::result::Result<Self, NoPadding> {
        self.position = ScorePosition::of(self.decoder.config(), score_at)?;
        Ok(self)
    }

    /// The token at which the score is read.
    pub fn position(&self) -> ScorePosition {
        self.position
    }

    /// Wraps a decoder with a scalar head that shares the policy's layers below the boundary.
    pub fn sharing(decoder: Decoder) -> Self {
        Self {
            trunk_use: TrunkUse::Shared,
            ..Self::new(decoder)
        }
    }

    /// Reads a frozen reward model.
    ///
    /// # Errors
    /// If the folder holds no reward model, or it cannot be read.
    pub fn load(folder: &Path, backend: &Backend) -> std::result::Result<Self, ModelError> {
        let frozen = |_: &_| Trainability::Frozen;
        Ok(Self::new(Decoder::load_reward_model(
            folder, frozen, backend,
        )?))
    }

    /// The decoder with its scalar head.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Whether the model starts from recorded states.
    pub fn trunk_use(&self) -> TrunkUse {
        self.trunk_use
    }

    /// One raw score a sequence, in packed passes of at most `limit` tokens.
    ///
    /// # Errors
    /// If an id lies outside the vocabulary, a sequence is empty or too long, or the device fails.
    pub fn score(&self, sequences: &[&[u32]], limit: usize) -> Result<Vec<f32>> {
        let sequences: Vec<IdsAndStates> = sequences.iter().map(|&ids| (ids, None)).collect();
        self.score_kept(&sequences, limit)
    }

    /// [`Self::score`] of sequences that may have recorded states.
    ///
    /// # Errors
    /// As [`Self::score`], and if states do not fit their sequences.
    pub fn score_kept(&self, sequences: &[IdsAndStates], limit: usize) -> Result<Vec<f32>> {
        if let Some(empty) = sequences.iter().position(|(ids, _)| ids.is_empty()) {
            bail!("sequence {empty} is empty; a reward model scores at a token");
        }
        let _work = work::begin(DeviceWork::Forward("reward model"));
        let mut scores = Vec::with_capacity(sequences.len());
        for run in cut(
            (0..sequences.len()).collect(),
            |i| sequences[i].0.len(),
            limit,
        ) {
            let run: Vec<IdsAndStates> = run.iter().map(|&i| sequences[i]).collect();
            let found = self.decoder.scores(&self.scored_states(&run)?)?;
            scores.extend(found.to_vec1::<f32>()?);
        }
        Ok(scores)
    }

    /// Last hidden state of each sequence at the token where the score is read: `[sequences,
    /// hidden]`.
    fn scored_states(&self, run: &[IdsAndStates]) -> Result<Tensor> {
        let segments = Segments::from_lengths(run.iter().map(|(ids, _)| ids.len()));
        let (decoder, skip) = (&self.decoder, Gradient::Skip);
        let wanted = Some(self.position.rows(run.iter().map(|(ids, _)| *ids)));
        if let Some(Boundary { layer, hidden }) = self.boundary(run)? {
            return decoder.forward_from(layer, &hidden, &segments, wanted, skip);
        }
        let ids: Vec<u32> = run.iter().flat_map(|(ids, _)| *ids).copied().collect();
        decoder.forward_at(&ids, &segments, wanted, skip)
    }

    fn boundary(&self, run: &[IdsAndStates]) -> Result<Option<Boundary>> {
        if self.trunk_use == TrunkUse::None {
            return Ok(None);
        }
        let states = run.iter().map(|&(ids, states)| (states, ids.len()));
        Boundary::join(states, self.decoder.params().device())
    }
}

impl Scorer for RewardModel {
    fn scores(&self, batch: &RewardBatch) -> std::result::Result<Vec<f32>, RewardError> {
        let sequences = batch.completions.iter().map(|c| (c.ids, c.states));
        let sequences: Vec<IdsAndStates> = sequences.collect();
        Ok(self.score_kept(&sequences, batch.pass_tokens)?)
    }
}
