//! The evaluations of a supervised stage, and early stopping.

use std::time::Instant;

use anyhow::Result;

use super::{Trainer, TrainerState};
use crate::ops::profile;
use crate::ops::work::{self, DeviceWork};
use crate::terminal::Phase;
use crate::train::best::Best;
use crate::train::configured::is_due;
use crate::train::metrics::{Metrics, names};
use crate::train::objective::{Evaluation, Objective};

impl<O: Objective> Trainer<'_, O> {
    /// Measures the initial model.
    pub(super) fn evaluate_before(&mut self) -> Result<()> {
        let _phase = Phase::begin("evaluating before training");
        if let Some(evaluation) = self.measure()? {
            let mut metrics = Metrics::new(0);
            set(&mut metrics, &evaluation);
            self.stage.log.write(&metrics)?;
            self.state.before = evaluation.clone();
            self.state.last = evaluation;
        }
        Ok(())
    }

    /// Evaluates every `eval_steps`, and at the end.
    pub(super) fn evaluate_when_due(&mut self, metrics: &mut Metrics) -> Result<()> {
        let due = is_due(self.step, self.job.training.eval_steps);
        if due || self.step == self.steps {
            self.evaluate(metrics)?;
        }
        // A closing evaluation that is not due does not count for patience: a longer run would not
        // have it.
        if due && self.job.patience > 0 && self.state.last.contains_key(names::EVAL_LOSS) {
            self.note_best()?;
        }
        Ok(())
    }

    /// Held-out measures of the model; `None` if no examples are held out.
    fn measure(&self) -> Result<Option<Evaluation>> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        let _work = work::begin(DeviceWork::Forward("model"));
        let found = self.job.objective.evaluate(self.model, &self.held_out)?;
        Ok(Some(found).filter(|measures| !measures.is_empty()))
    }

    fn evaluate(&mut self, metrics: &mut Metrics) -> Result<()> {
        let _part = profile::part("evaluate");
        let _phase = Phase::begin("evaluating");
        let start = Instant::now();
        let Some(evaluation) = self.measure()? else {
            return Ok(());
        };
        set(metrics, &evaluation);
        metrics.set(names::TIME_EVAL, start.elapsed().as_secs_f64());
        let shown: Vec<String> = evaluation
            .iter()
            .map(|(name, value)| format!("{name} {value:.4}"))
            .collect();
        self.stage
            .progress
            .note(&format!("step {}: {}", self.step, shown.join(", ")));
        self.state.last = evaluation;
        Ok(())
    }

    /// Saves the weights where the newest evaluation has the lowest held-out loss so far.
    fn note_best(&mut self) -> Result<()> {
        let found = Best {
            step: self.step,
            evaluation: self.state.last.clone(),
        };
        let best = self.state.best.as_ref();
        if best.is_some_and(|best| !found.is_below(best)) {
            self.state.since_best += 1;
            return Ok(());
        }
        self.best_weights.save(self.step, self.model)?;
        self.state.best = Some(found);
        self.state.since_best = 0;
        self.forget_former_bests()
    }

    /// Removes the weights of best steps that neither this run nor any of its checkpoints may
    /// restore.
    pub(super) fn forget_former_bests(&self) -> Result<()> {
        if self.job.patience == 0 {
            return Ok(());
        }
        let checkpoints = self.stage.checkpoints.all()?;
        // A checkpoint whose state cannot be read is not continued from.
        let states = checkpoints
            .iter()
            .filter_map(|c| c.state::<TrainerState>().ok());
        let named = states.filter_map(|state| state.best);
        let named = named.chain(self.state.best.clone()).map(|best| best.step);
        Ok(self.best_weights.keep_only(&named.collect::<Vec<_>>())?)
    }

    pub(super) fn is_patience_over(&self) -> bool {
        self.job.patience > 0 && self.state.since_best >= self.job.patience
    }
}

fn set(metrics: &mut Metrics, evaluation: &Evaluation) {
    evaluation.iter().for_each(|(name, value)| {
        metrics.set(name, *value);
    });
}
