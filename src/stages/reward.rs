//! The reward model: Bradley-Terry on pairs of a better and a worse answer (Stiennon et al. 2020, eq. 1).
//!
//! It reads prompt and answer and scores at the last token, or before it where its folder means that ([`ScorePosition`]). `[judge]` runs
//! the same stage on other pairs, for evaluations alone. Its draws are its own: another head to start with (and other adapters), another
//! order of the pairs, others of them held out. Other stages share the run's seed, which makes no two of their models alike: where
//! `[dpo]` and `[reward]` read one file they read it in one order, and adapters of the same shape start from the same matrix A.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Tensor;
use rollout::random::Independent;

use super::adapters::{Start, Trainee};
use super::context::{Context, Finished};
use super::dataset::Walk;
use super::examples::{Examples, Source};
use super::padding::{self, choose_padding};
use crate::config::{Reward, Stage, Training};
use crate::data::example::{Encoder, Pair};
use crate::data::packing::cut;
use crate::model::config::Head;
use crate::model::score_position::ScorePosition;
use crate::model::{Decoder, Gradient};
use crate::ops::attention::Segments;
use crate::rlhf::preference::{BradleyTerryLoss, bradley_terry};
use crate::terminal;
use crate::terminal::Phase;
use crate::train::metrics::names;
use crate::train::supervised::{Plan, train};
use crate::train::task::{Evaluation, Share, Task};

/// Bins of the expected calibration error (Guo et al. 2017, eq. 3).
const CALIBRATION_BINS: usize = 10;

/// Runs `[reward]` or `[judge]`; `None` when a signal stopped it.
///
/// # Errors
/// If data, model or a file is wrong, or training diverges.
pub fn reward(context: &Context, config: &Reward, stage: Stage) -> Result<Option<Finished>> {
    // 1. The model to start from, with a fresh scalar head.
    let tokenizer = context.tokenizer_of(&config.from)?;
    let seed = seed(context.config.run.seed, stage);
    let start = Start {
        table: stage.name(),
        from: &config.from,
        head: Head::Score,
        seed,
        device: context.device,
    };
    let mut trainee = Trainee::load(&start, &config.trainable)?;
    let before = tokenizer.pad_id();
    let tokenizer = choose_padding(trainee.model.config_mut(), tokenizer)?;
    let words = padding::in_words(trainee.model.config(), before, &tokenizer);
    words.into_iter().for_each(terminal::note_once);
    let model = &trainee.model;
    let position = ScorePosition::of(model.config(), None)?;
    let (table, scored) = (stage.name(), position.in_words());
    terminal::note_once(format_args!("[{table}] scores {scored}"));

    // 2. Records → pairs, some of them held out.
    let source = Source {
        stage,
        data: &config.data,
        held_out: &config.held_out,
        records: &config.records,
        max_length: config.max_length,
        too_long: config.too_long,
    };
    let encoder = source.encoder(&tokenizer, model)?;
    let pairs = Examples::read(&source, seed, &encoder, Encoder::pairs)?;
    let walk = pairs.training.walk(stage, &config.training, seed)?;

    // 3. Train, and leave a Hugging Face folder.
    let plan = Plan {
        stage: stage.name(),
        steps: walk.steps(&config.training),
        training: &config.training,
        patience: 0,
        max_bad_steps: context.config.run.max_bad_steps,
        rate: &|_| 1.0,
        folder: context.folder,
        stop: context.stop,
    };
    let centering = config.center_rewards_coefficient;
    let task = PairTask {
        pairs: pairs.training.all,
        held_out: pairs.held_out,
        walk,
        centering,
        position,
        training: &config.training,
    };
    let Some(report) = train(&task, model, &plan)? else {
        return Ok(None);
    };
    trainee.write_final(context, &tokenizer)?;
    let mut finished = Finished::supervised(plan.stage, &report, context.folder);
    pairs.misfits.add_to(&mut finished.table);
    Ok(Some(finished))
}

/// The seed of the stage's draws.
fn seed(run: u64, stage: Stage) -> u64 {
    match stage {
        Stage::Judge => Independent::Judge.seed(run),
        _ => run,
    }
}

struct PairTask<'a> {
    pairs: Vec<Pair>,
    held_out: Vec<Pair>,
    walk: Walk,
    centering: f64,
    position: ScorePosition,
    training: &'a Training,
}

/// Chosen and rejected of each pair, one after the other.
struct PairBatch {
    ids: Vec<u32>,
    segments: Segments,
    /// The row of each sequence that is scored.
    scored: Arc<[u32]>,
    margins: Vec<f64>,
}

impl PairBatch {
    fn new<'p>(pairs: impl Iterator<Item = &'p Pair>, position: ScorePosition) -> Self {
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

    fn loss(
        &self,
        model: &Decoder,
        gradient: Gradient,
        centering: f64,
        pairs: usize,
    ) -> Result<BradleyTerryLoss> {
        let (chosen, rejected) = self.scores(model, gradient)?;
        Ok(bradley_terry(
            &chosen,
            &rejected,
            Some(&self.margins),
            centering,
            pairs,
        )?)
    }
}

fn tokens(pair: &Pair) -> usize {
    2 * pair.prompt.len() + pair.chosen.len() + pair.rejected.len()
}

impl Task for PairTask<'_> {
    type Micro = PairBatch;

    fn micro_batches(&self, step: u64) -> Result<Vec<PairBatch>> {
        let indices = self.walk.step(step);
        let runs = cut(
            indices,
            |i| tokens(&self.pairs[i]),
            self.training.micro_batch_tokens,
        );
        Ok(runs
            .iter()
            .map(|run| PairBatch::new(run.iter().map(|&i| &self.pairs[i]), self.position))
            .collect())
    }

    fn tokens(&self, micro: &PairBatch) -> usize {
        micro.ids.len()
    }

    fn count(&self, micro: &PairBatch) -> f64 {
        micro.margins.len() as f64
    }

    fn loss(
        &self,
        model: &Decoder,
        micro: &PairBatch,
        total: f64,
        gradient: Gradient,
    ) -> Result<Share> {
        let found = micro.loss(model, gradient, self.centering, total as usize)?;
        Ok(found.loss.into())
    }

    fn evaluate(&self, model: &Decoder) -> Result<Option<Evaluation>> {
        let (pairs, limit) = (&self.held_out, self.training.micro_batch_tokens);
        if pairs.is_empty() {
            return Ok(None);
        }
        let (mut gaps, mut loss) = (Vec::new(), 0.0);
        let phase = Phase::counted("pairs", pairs.len());
        for run in cut((0..pairs.len()).collect(), |i| tokens(&pairs[i]), limit) {
            let batch = PairBatch::new(run.iter().map(|&i| &pairs[i]), self.position);
            let (chosen, rejected) = batch.scores(model, Gradient::Skip)?;
            phase.add(run.len());
            gaps.extend((&chosen - &rejected)?.to_vec1::<f32>()?);
            let part = bradley_terry(
                &chosen,
                &rejected,
                Some(&batch.margins),
                self.centering,
                pairs.len(),
            )?;
            loss += f64::from(part.loss.to_scalar::<f32>()?);
        }
        let mean = |f: &dyn Fn(f64) -> f64| {
            gaps.iter().map(|&g| f(f64::from(g))).sum::<f64>() / gaps.len() as f64
        };
        let measures = [
            (names::EVAL_LOSS, loss),
            (
                names::EVAL_ACCURACY,
                mean(&|g| f64::from(u8::from(g > 0.0))),
            ),
            (names::EVAL_MARGIN, mean(&|g| g)),
            (names::EVAL_CALIBRATION_ERROR, calibration_error(&gaps)),
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

/// Expected calibration error of the probability σ(|gap|) that the higher score is the better answer: over bins of that
/// probability, the mean distance of accuracy and confidence, weighted by the bin's share.
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
