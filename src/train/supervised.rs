//! The training loop of supervised stages: accumulate gradients, step, evaluate, save, and continue
//! from a checkpoint.
//!
//! A step's examples are a function of its number, so a continued run repeats the bits of an
//! unbroken one. The stage's [`Objective`] defines batches and their loss; this module knows
//! neither text nor pairs.

mod evaluation;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::batch_order::BatchOrder;
use super::best::{Best, BestWeights};
use super::checkpoint::Checkpoint;
use super::configured::{adamw, gradient, is_due, never_at_peak, rate_of_zero, schedule};
use super::float;
use super::metrics::{Metrics, names};
use super::objective::{Evaluation, Objective};
use super::optimizer::{AdamW, StepOutcome};
use super::run_folder::StageFolder;
use super::schedule::Schedule;
use super::signal::{Outcome, StopRequest};
use super::snapshot;
use super::stage_loop::{self, StageLoop, Steps};
use crate::config::Training;
use crate::data::packing::cut;
use crate::model::Decoder;
use crate::ops::profile;
use crate::ops::work::{self, DeviceWork};
use crate::terminal::Phase;

/// The inputs of a supervised stage's loop.
pub struct TrainingJob<'a, O: Objective> {
    /// The stage's name in progress lines and messages.
    pub stage: &'static str,
    /// The loss, and the batches that it is computed on.
    pub objective: &'a O,
    /// Examples to train on.
    pub examples: &'a [O::Example],
    /// Examples to measure on; never trained on.
    pub held_out: &'a [O::Example],
    /// The examples of each step.
    pub order: &'a BatchOrder,
    /// The keys that every stage has.
    pub training: &'a Training,
    /// Evaluations without a new best loss after which training ends; 0 for never.
    pub patience: usize,
    /// Skipped steps in a row after which the stage fails.
    pub max_bad_steps: usize,
    /// The folder of the stage.
    pub folder: &'a StageFolder,
    /// The request to stop, read between steps.
    pub stop: &'a StopRequest,
}

/// The result of a supervised stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingReport {
    /// Configured steps; early stopping runs fewer.
    pub planned: u64,
    /// Completed steps.
    pub steps: u64,
    /// Tokens fed.
    pub tokens: u64,
    /// Held-out measures before the first step.
    pub before: Evaluation,
    /// Held-out measures of the final model.
    pub after: Evaluation,
    /// Training loss of the last step.
    pub last_loss: f64,
}

/// Sums over the micro-batches of a step.
#[derive(Default)]
struct StepSums {
    loss: f64,
    tokens: usize,
    measures: BTreeMap<&'static str, f64>,
}

/// The state of a checkpoint beside weights and moments.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct TrainerState {
    optimizer_steps: u64,
    tokens: u64,
    skipped: u64,
    bad_in_row: usize,
    #[serde(with = "float::map")]
    before: Evaluation,
    #[serde(with = "float::map")]
    last: Evaluation,
    #[serde(with = "float")]
    last_loss: f64,
    best: Option<Best>,
    since_best: usize,
}

/// Trains `model` to its final weights. Returns `None` if a signal stopped the stage, which is then
/// saved.
///
/// # Errors
/// If a computation or a file fails, or too many steps in a row were not finite.
pub fn train<O: Objective>(
    job: &TrainingJob<O>,
    model: &Decoder,
) -> Result<Option<TrainingReport>> {
    let mut trainer = Trainer::resume(job, model)?;
    let outcome = stage_loop::run(&mut trainer, job.stop)?;
    trainer.stage.progress.finish();
    match outcome {
        Outcome::Stopped => Ok(None),
        Outcome::Finished => trainer.finish().map(Some),
    }
}

/// A supervised stage under way.
struct Trainer<'a, O: Objective> {
    job: &'a TrainingJob<'a, O>,
    model: &'a Decoder,
    stage: StageLoop,
    schedule: Schedule,
    optimizer: AdamW,
    best_weights: BestWeights,
    held_out: Vec<O::Batch>,
    state: TrainerState,
    steps: u64,
    step: u64,
}

impl<O: Objective> Steps for Trainer<'_, O> {
    const UNIT: &'static str = "step";

    fn done(&self) -> u64 {
        self.step
    }

    fn continues(&self) -> bool {
        self.step < self.steps && !self.is_patience_over()
    }

    fn step(&mut self) -> Result<()> {
        let (start, step) = (Instant::now(), self.step + 1);
        let part = profile::part("step");
        let sums = self.accumulate(step)?;
        let rate = self.schedule.lr_at(step as usize);
        let grad_norm = self.update(sums.loss, rate)?;
        drop(part);
        self.state.tokens += sums.tokens as u64;
        self.step = step;
        let mut metrics = self.metrics(&sums, rate, grad_norm, start);
        let speed = sums.tokens as f64 / start.elapsed().as_secs_f64();
        let shown = [("loss", sums.loss), ("tok/s", speed)];
        self.stage.progress.step(step, &shown);
        self.evaluate_when_due(&mut metrics)?;
        metrics.set_memory(self.model.params().backend())?;
        self.stage.log.write(&metrics)?;
        if is_due(step, self.job.training.save_steps) {
            self.save()?;
        }
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        self.state.optimizer_steps = self.optimizer.steps();
        let (model, optimizer, state) = (self.model, &self.optimizer, &self.state);
        self.stage.save(self.step, |writer| {
            snapshot::save(writer, ROLE, model, optimizer)?;
            Ok(state)
        })?;
        self.forget_former_bests()
    }
}

impl<'a, O: Objective> Trainer<'a, O> {
    /// Continues from the newest usable checkpoint, or begins with an evaluation.
    fn resume(job: &'a TrainingJob<'a, O>, model: &'a Decoder) -> Result<Self> {
        let training = job.training;
        let steps = job.order.steps(training);
        let mut optimizer = AdamW::new(model.params(), adamw(training))?;
        let (stage, newest) = StageLoop::open(job.stage, Self::UNIT, steps, job.folder, training)?;
        rate_of_zero(training, "the model stays")
            .into_iter()
            .chain(never_at_peak(training, steps))
            .for_each(|note| stage.progress.note(&note));
        let state = match &newest {
            Some(checkpoint) => restore(checkpoint, model, &mut optimizer)?,
            None => TrainerState::default(),
        };
        let held_out = batches(job, job.held_out, (0..job.held_out.len()).collect())?;
        let mut trainer = Self {
            job,
            model,
            stage,
            schedule: schedule(training, steps, training.learning_rate),
            optimizer,
            best_weights: BestWeights::new(job.folder.path()),
            held_out,
            state,
            steps,
            step: newest.as_ref().map_or(0, |checkpoint| checkpoint.step),
        };
        if newest.is_none() {
            trainer.evaluate_before().context("before the first step")?;
        }
        Ok(trainer)
    }

    fn metrics(&self, sums: &StepSums, rate: f64, grad_norm: f64, start: Instant) -> Metrics {
        let seconds = start.elapsed().as_secs_f64();
        let speed = sums.tokens as f64 / seconds;
        let mut metrics = Metrics::new(self.step);
        metrics
            .set(names::TRAIN_LOSS, sums.loss)
            .set(names::TRAIN_LEARNING_RATE, rate)
            .set(names::TRAIN_GRAD_NORM, grad_norm)
            .set(names::TRAIN_TOKENS, self.state.tokens as f64)
            .set(names::TRAIN_EPOCH, self.job.order.epochs(self.step))
            .set(names::TRAIN_SKIPPED_STEPS, self.state.skipped as f64)
            .set(names::TRAIN_TOKENS_PER_SECOND, speed)
            .set(names::TIME_STEP, seconds);
        sums.measures.iter().for_each(|(name, value)| {
            metrics.set(name, *value);
        });
        metrics
    }

    /// Accumulates the gradients of the step's mean loss.
    fn accumulate(&self, step: u64) -> Result<StepSums> {
        let (job, params) = (self.job, self.model.params());
        let indices = job.order.step(step);
        let fed = |&index: &usize| job.objective.tokens(&job.examples[index]);
        let mut sums = StepSums {
            tokens: indices.iter().map(fed).sum(),
            ..StepSums::default()
        };
        let micro_batches = batches(job, job.examples, indices)?;
        let total = job.objective.total(&micro_batches);
        let _work = work::begin(DeviceWork::Training("model"));
        params.zero_grad()?;
        let count = micro_batches.len();
        let phase = (count > 1).then(|| Phase::counted("micro-batches", count));
        for batch in &micro_batches {
            phase.iter().for_each(|phase| phase.add(1));
            let kept = gradient(job.training);
            let share = job.objective.loss(self.model, batch, total, kept)?;
            sums.loss += f64::from(share.loss.to_scalar::<f32>()?);
            for (name, part) in share.measures {
                *sums.measures.entry(name).or_default() += part;
            }
            share.loss.backward()?;
        }
        match params.unreached().as_slice() {
            [] => Ok(sums),
            missed => bail!(
                "no gradient reached {}; a trained parameter is not part of the loss",
                missed.join(", ")
            ),
        }
    }

    /// Takes the optimizer's step, or skips one whose loss or gradient is not finite; returns the
    /// gradient's norm.
    fn update(&mut self, loss: f64, rate: f64) -> Result<f64> {
        let _work = work::begin(DeviceWork::Optimizer);
        let objective = self.job.objective;
        let outcome = match loss.is_finite() {
            true => self
                .optimizer
                .step(self.model.params(), |p| rate * objective.rate_share(p))?,
            false => StepOutcome::NotFinite,
        };
        if let StepOutcome::Moved { grad_norm } = outcome {
            self.state.bad_in_row = 0;
            self.state.last_loss = loss;
            return Ok(grad_norm);
        }
        self.state.skipped += 1;
        self.state.bad_in_row += 1;
        let (step, bad) = (self.step + 1, self.state.bad_in_row);
        self.stage.progress.note(&format!(
            "step {step} skipped: loss {loss} or its gradient is not finite"
        ));
        if bad >= self.job.max_bad_steps.max(1) {
            bail!(
                "{bad} steps in a row up to step {step} had a loss or gradient that is not finite \
                 (last loss {loss}), and would have it again; look at the data, or lower \
                 {stage}.learning_rate (now {rate:e}), and start the stage over: collimate {stage} \
                 … --fresh; or raise run.max_bad_steps to skip more such steps",
                stage = self.job.stage,
            );
        }
        Ok(f64::NAN)
    }

    /// Writes the last checkpoint, then restores the best weights if the stage stops early.
    fn finish(mut self) -> Result<TrainingReport> {
        self.save()?;
        if self.optimizer.steps() == 0 {
            self.stage
                .progress
                .note("every step was skipped: the model stays as the stage found it");
        }
        let state = self.state;
        let last = Best {
            step: self.step,
            evaluation: state.last,
        };
        // The closing evaluation may be the lowest, though it was not due.
        let after = match state.best.filter(|best| !last.is_below(best)) {
            None => last.evaluation,
            Some(best) => {
                self.best_weights
                    .restore(best.step, self.model)
                    .context("the best weights of early stopping")?;
                best.evaluation
            }
        };
        Ok(TrainingReport {
            planned: self.steps,
            steps: self.step,
            tokens: state.tokens,
            before: state.before,
            after,
            last_loss: state.last_loss,
        })
    }
}

/// The name of the model's files in a checkpoint.
const ROLE: &str = "model";

/// Packs the examples of `indices` into batches of at most `micro_batch_tokens` tokens.
fn batches<O: Objective>(
    job: &TrainingJob<O>,
    examples: &[O::Example],
    indices: Vec<usize>,
) -> Result<Vec<O::Batch>> {
    let tokens = |index: usize| job.objective.tokens(&examples[index]);
    let runs = cut(indices, tokens, job.training.micro_batch_tokens);
    let batch = |run: &Vec<usize>| {
        let examples: Vec<&O::Example> = run.iter().map(|&index| &examples[index]).collect();
        job.objective.batch(&examples)
    };
    runs.iter().map(batch).collect()
}

fn restore(
    checkpoint: &Checkpoint,
    model: &Decoder,
    optimizer: &mut AdamW,
) -> Result<TrainerState> {
    let state: TrainerState = checkpoint.state()?;
    snapshot::restore(checkpoint, ROLE, model, optimizer, state.optimizer_steps)?;
    Ok(state)
}

#[cfg(test)]
mod tests;
