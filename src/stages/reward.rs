//! The reward model: Bradley-Terry on pairs of a better and a worse answer (Stiennon et al. 2020,
//! eq. 1).
//!
//! It reads prompt and answer, and scores at the last token, or at the token before it if the
//! model's folder implies that ([`ScorePosition`]). `[judge]` runs the same stage on other pairs,
//! for evaluations alone. The judge has a seed of its own: it starts with another head (and other
//! adapters), reads the pairs in another order, and holds out other pairs. All other stages share
//! the run's seed: if `[dpo]` and `[reward]` read one file, they read it in the same order, and
//! adapters of the same shape start from the same matrix A.

use std::sync::Arc;

use kernels::attention::Segments;

use crate::random::Independent;
use anyhow::Result;
use candle_core::Tensor;

use super::context::Context;
use super::definition::CommandHelp;
use super::examples::Examples;
use super::padding::{self, choose_padding};
use super::supervised::ExampleStage;
use crate::config::{Reward, Stage};
use crate::data;
use crate::data::example::{Encoded, Encoder, Pair};
use crate::data::records::Record;
use crate::data::tokenizer::Tokenizer;
use crate::model::config::Head;
use crate::model::score_position::ScorePosition;
use crate::model::{Decoder, Gradient};
use crate::rlhf::preference::{BradleyTerryLoss, bradley_terry};
use crate::terminal;
use crate::terminal::Phase;
use crate::train::metrics::names;
use crate::train::objective::{Evaluation, LossShare, Objective};

/// Bins of the expected calibration error (Guo et al. 2017, eq. 3).
const CALIBRATION_BINS: usize = 10;

impl ExampleStage for Reward {
    type Record = Pair;
    type Objective = ScoreLoss;

    const HEAD: Head = Head::Score;

    fn help(stage: Stage) -> CommandHelp {
        match stage {
            Stage::Judge => CommandHelp {
                about: "Train the judge: a second reward model that PPO never sees",
                details: "Needs [judge], whose keys are those of [reward]. Give it other pairs: \
                          where reward rises and judge falls, the policy has learnt the reward \
                          model's weaknesses.",
                example: "collimate judge configs/quickstart.toml",
            },
            _ => CommandHelp {
                about: "Train the reward model on pairs of a better and a worse answer",
                details: "Needs [reward] with `data`. Reports accuracy, margin and calibration on \
                          held-out pairs.",
                example: "collimate reward configs/quickstart.toml --set reward.max_steps=300 \
                          --fresh",
            },
        }
    }

    fn seed(stage: Stage, run: u64) -> u64 {
        match stage {
            Stage::Judge => Independent::Judge.seed(run),
            _ => run,
        }
    }

    fn prepare(&self, model: &mut Decoder, tokenizer: Tokenizer) -> Result<Tokenizer> {
        let before = tokenizer.pad_id();
        let tokenizer = choose_padding(model.config_mut(), tokenizer)?;
        let words = padding::in_words(model.config(), before, &tokenizer);
        words.into_iter().for_each(terminal::note_once);
        Ok(tokenizer)
    }

    fn encode(&self, encoder: &Encoder, records: &[Record]) -> data::Result<Encoded<Pair>> {
        encoder.pairs(records)
    }

    fn split(&self, pairs: Examples<Pair>) -> Examples<Pair> {
        pairs
    }

    fn objective(
        &self,
        context: &Context,
        model: &Decoder,
        _examples: &mut Examples<Pair>,
    ) -> Result<Option<ScoreLoss>> {
        let position = ScorePosition::of(model.config(), None)?;
        let (table, scored) = (context.stage, position.in_words());
        terminal::note_once(format_args!("[{table}] scores {scored}"));
        Ok(Some(ScoreLoss {
            centering: self.center_rewards_coefficient,
            position,
        }))
    }
}

/// The ranking loss of pairs of scores.
pub struct ScoreLoss {
    /// Weight of the squared sum of a pair's scores.
    centering: f64,
    /// The token at which a sequence is scored.
    position: ScorePosition,
}

/// Chosen and rejected sequence of each pair, one after the other.
pub struct ScoredPairs {
    ids: Vec<u32>,
    segments: Segments,
    /// The row of each sequence that is scored.
    scored: Arc<[u32]>,
    margins: Vec<f64>,
}

impl ScoredPairs {
    fn new(pairs: &[&Pair], position: ScorePosition) -> Self {
        let (mut sequences, mut margins) = (Vec::new(), Vec::new());
        for pair in pairs {
            sequences.extend(pair.sequences());
            margins.push(f64::from(pair.margin));
        }
        Self {
            ids: sequences.concat(),
            segments: Segments::from_lengths(sequences.iter().map(Vec::len)),
            scored: position.rows(sequences.iter().map(Vec::as_slice)),
            margins,
        }
    }

    /// Scores of the chosen and of the rejected answers, `[pairs]` each.
    fn scores(&self, model: &Decoder, gradient: Gradient) -> Result<(Tensor, Tensor)> {
        let scored = Some(self.scored.clone());
        let hidden = model.forward_at(&self.ids, &self.segments, scored, gradient)?;
        let scores = model.scores(&hidden)?.reshape((self.margins.len(), 2))?;
        Ok((
            scores.narrow(1, 0, 1)?.squeeze(1)?,
            scores.narrow(1, 1, 1)?.squeeze(1)?,
        ))
    }

    fn ranking(
        &self,
        chosen: &Tensor,
        rejected: &Tensor,
        centering: f64,
        pairs: usize,
    ) -> Result<BradleyTerryLoss> {
        let margins = Some(self.margins.as_slice());
        Ok(bradley_terry(chosen, rejected, margins, centering, pairs)?)
    }
}

impl Objective for ScoreLoss {
    type Example = Pair;
    type Batch = ScoredPairs;
    /// Pairs.
    type Total = usize;

    fn tokens(&self, pair: &Pair) -> usize {
        2 * pair.prompt.len() + pair.chosen.len() + pair.rejected.len()
    }

    fn batch(&self, pairs: &[&Pair]) -> Result<ScoredPairs> {
        Ok(ScoredPairs::new(pairs, self.position))
    }

    fn total(&self, batches: &[ScoredPairs]) -> usize {
        batches.iter().map(|batch| batch.margins.len()).sum()
    }

    fn loss(
        &self,
        model: &Decoder,
        batch: &ScoredPairs,
        pairs: usize,
        gradient: Gradient,
    ) -> Result<LossShare> {
        let (chosen, rejected) = batch.scores(model, gradient)?;
        let found = batch.ranking(&chosen, &rejected, self.centering, pairs)?;
        Ok(found.loss.into())
    }

    fn evaluate(&self, model: &Decoder, batches: &[ScoredPairs]) -> Result<Evaluation> {
        let (mut gaps, mut loss) = (Vec::new(), 0.0);
        let (pairs, phase) = (
            self.total(batches),
            Phase::counted("batches", batches.len()),
        );
        for batch in batches {
            let (chosen, rejected) = batch.scores(model, Gradient::Skip)?;
            phase.add(1);
            gaps.extend((&chosen - &rejected)?.to_vec1::<f32>()?);
            let part = batch.ranking(&chosen, &rejected, self.centering, pairs)?;
            loss += f64::from(part.loss.to_scalar::<f32>()?);
        }
        let mean = |f: &dyn Fn(f64) -> f64| {
            gaps.iter().map(|&g| f(f64::from(g))).sum::<f64>() / gaps.len() as f64
        };
        let right = |gap: f64| f64::from(u8::from(gap > 0.0));
        let measures = [
            (names::EVAL_LOSS, loss),
            (names::EVAL_ACCURACY, mean(&right)),
            (names::EVAL_MARGIN, mean(&|gap| gap)),
            (names::EVAL_CALIBRATION_ERROR, calibration_error(&gaps)),
        ];
        let named = measures.map(|(name, value)| (name.to_owned(), value));
        Ok(named.into_iter().collect())
    }
}

/// Expected calibration error of the probability σ(|gap|) that the higher score is the better
/// answer: over bins of that probability, the mean distance of accuracy and confidence, weighted by
/// the bin's share.
fn calibration_error(gaps: &[f32]) -> f64 {
    let mut bins = [(0usize, 0usize, 0f64); CALIBRATION_BINS];
    for &gap in gaps {
        let confidence = 1.0 / (1.0 + (-f64::from(gap.abs())).exp());
        let bin = (((confidence - 0.5) * 2.0 * CALIBRATION_BINS as f64) as usize)
            .min(CALIBRATION_BINS - 1);
        bins[bin].0 += 1;
        bins[bin].1 += usize::from(gap > 0.0);
        bins[bin].2 += confidence;
    }
    let distance =
        |(_, right, confidence): &(usize, usize, f64)| (*right as f64 - confidence).abs();
    bins.iter().map(distance).sum::<f64>() / gaps.len() as f64
}

#[cfg(test)]
mod tests {
    use super::calibration_error;

    #[test]
    fn calibration_of_known_cases() {
        // Four answers at confidence 0.75, three of them right: calibrated.
        let three = 3f32.ln();
        assert!(calibration_error(&[three, three, three, -three]) < 1e-6);
        // Certain and wrong: the error is whole.
        assert!((calibration_error(&[-50.0]) - 1.0).abs() < 1e-6);
    }
}
