//! The loop that pretraining, fine-tuning and reward models share: accumulate, step, evaluate, save, and continue where it was.
//!
//! What a step reads is a function of its number, so a continued run repeats the bits of an unbroken one. A task says what a
//! step's data and loss are ([`Task`]); nothing here knows text or pairs.

mod evaluation;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::best::{Best, BestWeights};
use super::checkpoint::{Checkpoint, Checkpoints};
use super::configured::{adamw, gradient, is_due, never_at_peak, rate_of_zero, schedule};
use super::float;
use super::memory::peak_bytes;
use super::metrics::{Keep, Metrics, StepLog, names};
use super::optimizer::{AdamW, StepOutcome};
use super::progress::Progress;
use super::run_folder::StageFolder;
use super::schedule::Schedule;
use super::signal::StopRequest;
use super::snapshot;
use super::task::{Evaluation, Task};
use crate::config::Training;
use crate::model::Decoder;
use crate::ops::param::Param;
use crate::ops::profile;
use crate::terminal::Phase;

/// What the micro-batches of a step came to.
#[derive(Default)]
struct Sums {
    loss: f64,
    tokens: usize,
    measures: BTreeMap<&'static str, f64>,
}

/// How a stage trains.
pub struct Plan<'a> {
    /// The stage's name in progress lines and messages.
    pub stage: &'static str,
    /// Optimizer steps in all.
    pub steps: u64,
    /// The keys that all stages have.
    pub training: &'a Training,
    /// Evaluations without a new best after which training ends; 0 never.
    pub patience: usize,
    /// Skipped steps in a row after which the stage fails.
    pub max_bad_steps: usize,
    /// A parameter's learning rate as a share of the schedule's.
    pub rate: &'a dyn Fn(&Param) -> f64,
    /// Where the stage keeps its files.
    pub folder: &'a StageFolder,
    /// Asked between steps.
    pub stop: &'a StopRequest,
}

/// What training came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Steps done.
    pub steps: u64,
    /// Steps asked for; more than were done where training stopped early.
    pub planned: u64,
    /// Tokens fed.
    pub tokens: u64,
    /// Held-out measures before the first step.
    pub before: Evaluation,
    /// Held-out measures of the model that is kept.
    pub after: Evaluation,
    /// Training loss of the last step.
    pub last_loss: f64,
}

/// Everything beside the weights and moments that a step reads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
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

/// Trains `model` and leaves it as it is to be kept. `None`: a signal came, the state is saved.
///
/// # Errors
/// If a computation or a file fails, or too many steps in a row were not finite.
pub fn train<T: Task>(task: &T, model: &Decoder, plan: &Plan) -> Result<Option<Report>> {
    let mut run = Run::resume(task, model, plan)?;
    if run.step == 0 {
        run.evaluate_before().context("before the first step")?;
    }
    while run.step < plan.steps && !run.is_patience_over() {
        if plan.stop.is_requested() {
            run.save()?;
            run.progress.finish();
            return Ok(None);
        }
        let step = run.step + 1;
        run.step().with_context(|| format!("step {step}"))?;
    }
    run.progress.finish();
    run.finish().map(Some)
}

struct Run<'a, T> {
    task: &'a T,
    model: &'a Decoder,
    plan: &'a Plan<'a>,
    schedule: Schedule,
    optimizer: AdamW,
    checkpoints: Checkpoints,
    best_weights: BestWeights,
    log: StepLog,
    progress: Progress,
    state: State,
    step: u64,
    saved: Option<u64>,
}

impl<'a, T: Task> Run<'a, T> {
    /// Starts from the newest valid checkpoint, or from nothing.
    fn resume(task: &'a T, model: &'a Decoder, plan: &'a Plan<'a>) -> Result<Self> {
        let mut optimizer = AdamW::new(model.params(), adamw(plan.training))?;
        let checkpoints = Checkpoints::open(&plan.folder.checkpoints())?;
        let latest = checkpoints.resume()?;
        let (state, step) = match &latest.checkpoint {
            Some(checkpoint) => (restore(checkpoint, model, &mut optimizer)?, checkpoint.step),
            None => (State::default(), 0),
        };
        let keep = if step > 0 {
            Keep::UpTo(step)
        } else {
            Keep::Nothing
        };
        let log = StepLog::open(&plan.folder.metrics(), keep)?;
        let progress = Progress::new(plan.stage, step, plan.steps, plan.training.log_steps as u64);
        latest
            .passed_over
            .iter()
            .for_each(|line| progress.note(&format!("damaged checkpoint passed over: {line}")));
        log.damage()
            .into_iter()
            .for_each(|line| progress.note(line));
        if step > 0 {
            progress.note(&format!("continues after step {step}"));
        }
        rate_of_zero(plan.training, "the model stays")
            .into_iter()
            .chain(never_at_peak(plan.training, plan.steps))
            .for_each(|note| progress.note(&note));
        let schedule = schedule(plan.training, plan.steps, plan.training.learning_rate);
        Ok(Self {
            task,
            model,
            plan,
            schedule,
            optimizer,
            checkpoints,
            best_weights: BestWeights::new(plan.folder.path()),
            log,
            progress,
            state,
            step,
            saved: latest.checkpoint.map(|checkpoint| checkpoint.step),
        })
    }

    /// One optimizer step, with its evaluation and checkpoint when they are due.
    fn step(&mut self) -> Result<()> {
        let (start, step) = (Instant::now(), self.step + 1);
        let part = profile::part("step");
        let Sums {
            loss,
            tokens,
            measures,
        } = self.accumulate(step)?;
        let rate = self.schedule.lr_at(step as usize);
        let grad_norm = self.update(loss, rate)?;
        drop(part);
        self.state.tokens += tokens as u64;
        self.step = step;
        let mut metrics = Metrics::new(step);
        metrics
            .set(names::TRAIN_LOSS, loss)
            .set(names::TRAIN_LEARNING_RATE, rate)
            .set(names::TRAIN_GRAD_NORM, grad_norm)
            .set(names::TRAIN_TOKENS, self.state.tokens as f64)
            .set(names::TRAIN_EPOCH, self.task.epochs(step))
            .set(names::TRAIN_SKIPPED_STEPS, self.state.skipped as f64)
            .set(
                names::TRAIN_TOKENS_PER_SECOND,
                tokens as f64 / start.elapsed().as_secs_f64(),
            )
            .set(names::TIME_STEP, start.elapsed().as_secs_f64());
        measures.iter().for_each(|(name, value)| {
            metrics.set(name, *value);
        });
        self.progress.step(
            step,
            &[
                ("loss", loss),
                ("tok/s", tokens as f64 / start.elapsed().as_secs_f64()),
            ],
        );
        self.evaluate_when_due(&mut metrics)?;
        if let Some(bytes) = peak_bytes() {
            metrics.set(names::MEMORY_PEAK_BYTES, bytes as f64);
        }
        self.log.write(&metrics)?;
        if is_due(step, self.plan.training.save_steps) {
            self.save()?;
        }
        Ok(())
    }

    /// Gradients of the step's mean loss; returns that loss, the tokens fed and what else was measured on the way.
    fn accumulate(&self, step: u64) -> Result<Sums> {
        let micros = self.task.micro_batches(step)?;
        let total: f64 = micros.iter().map(|m| self.task.count(m)).sum();
        self.model.params().zero_grad()?;
        let mut sums = Sums::default();
        let phase = (micros.len() > 1).then(|| Phase::counted("micro-batches", micros.len()));
        for micro in &micros {
            phase.iter().for_each(|phase| phase.add(1));
            let share = self
                .task
                .loss(self.model, micro, total, gradient(self.plan.training))?;
            sums.loss += f64::from(share.loss.to_scalar::<f32>()?);
            sums.tokens += self.task.tokens(micro);
            for (name, part) in share.measures {
                *sums.measures.entry(name).or_default() += part;
            }
            share.loss.backward()?;
        }
        match self.model.params().unreached().as_slice() {
            [] => Ok(sums),
            missed => bail!(
                "no gradient reached {}; a trained parameter is not part of the loss",
                missed.join(", ")
            ),
        }
    }

    /// Steps, or skips a step that is not finite; returns the gradient's norm.
    fn update(&mut self, loss: f64, rate: f64) -> Result<f64> {
        let outcome = match loss.is_finite() {
            true => self
                .optimizer
                .step(self.model.params(), |p| rate * (self.plan.rate)(p))?,
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
        self.progress.note(&format!(
            "step {step} skipped: loss {loss} or its gradient is not finite"
        ));
        if bad >= self.plan.max_bad_steps.max(1) {
            bail!(
                "{bad} steps in a row up to step {step} had a loss or gradient that is not finite (last loss {loss}); \
                 lower {stage}.learning_rate (now {rate:e}) or look at the data, then run again: it continues from the last checkpoint \
                 (run.max_bad_steps says how many such steps are borne)",
                stage = self.plan.stage,
            );
        }
        Ok(f64::NAN)
    }

    /// Writes a checkpoint, unless the last one is of this step: it holds the same.
    fn save(&mut self) -> Result<()> {
        if self.saved == Some(self.step) {
            return Ok(());
        }
        let _part = profile::part("save");
        let _phase = Phase::begin("saving");
        self.log.sync()?;
        let mut writer = self.checkpoints.writer(self.step)?;
        snapshot::save(&mut writer, ROLE, self.model, &self.optimizer)?;
        self.state.optimizer_steps = self.optimizer.steps();
        writer.commit(&self.state)?;
        self.saved = Some(self.step);
        let training = self.plan.training;
        self.checkpoints
            .prune(training.keep_last, training.keep_every as u64)?;
        self.forget_former_bests()
    }

    /// The last checkpoint, then the best weights where early stopping asks for them.
    fn finish(mut self) -> Result<Report> {
        self.save()?;
        if self.optimizer.steps() == 0 {
            self.progress
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
        Ok(Report {
            steps: self.step,
            planned: self.plan.steps,
            tokens: state.tokens,
            before: state.before,
            after,
            last_loss: state.last_loss,
        })
    }
}

const ROLE: &str = "model";

fn restore(checkpoint: &Checkpoint, model: &Decoder, optimizer: &mut AdamW) -> Result<State> {
    let state: State = checkpoint.state()?;
    snapshot::restore(checkpoint, ROLE, model, optimizer, state.optimizer_steps)?;
    Ok(state)
}

#[cfg(test)]
mod tests;
