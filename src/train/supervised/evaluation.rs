//! When a supervised stage is evaluated, and what early stopping makes of it.

use std::time::Instant;

use anyhow::Result;

use super::{Run, State};
use crate::ops::profile;
use crate::terminal::Phase;
use crate::train::best::Best;
use crate::train::configured::is_due;
use crate::train::metrics::{Metrics, names};
use crate::train::task::Task;

impl<T: Task> Run<'_, T> {
    pub(super) fn evaluate_before(&mut self) -> Result<()> {
        let _phase = Phase::begin("evaluating before training");
        if let Some(evaluation) = self.task.evaluate(self.model)? {
            let mut metrics = Metrics::new(0);
            evaluation.iter().for_each(|(name, value)| {
                metrics.set(name, *value);
            });
            self.log.write(&metrics)?;
            self.state.before = evaluation.clone();
            self.state.last = evaluation;
        }
        Ok(())
    }

    /// Evaluates every `eval_steps`, and at the end.
    pub(super) fn evaluate_when_due(&mut self, metrics: &mut Metrics) -> Result<()> {
        let due = is_due(self.step, self.plan.training.eval_steps);
        if due || self.step == self.plan.steps {
            self.evaluate(metrics)?;
        }
        // A closing evaluation that is not due does not count: a run of more steps would not have it.
        if due && self.plan.patience > 0 && self.state.last.contains_key(names::EVAL_LOSS) {
            self.note_best()?;
        }
        Ok(())
    }

    fn evaluate(&mut self, metrics: &mut Metrics) -> Result<()> {
        let _part = profile::part("evaluate");
        let _phase = Phase::begin("evaluating");
        let start = Instant::now();
        let Some(evaluation) = self.task.evaluate(self.model)? else {
            return Ok(());
        };
        evaluation.iter().for_each(|(name, value)| {
            metrics.set(name, *value);
        });
        metrics.set(names::TIME_EVAL, start.elapsed().as_secs_f64());
        let shown: Vec<String> = evaluation
            .iter()
            .map(|(name, value)| format!("{name} {value:.4}"))
            .collect();
        self.progress
            .note(&format!("step {}: {}", self.step, shown.join(", ")));
        self.state.last = evaluation;
        Ok(())
    }

    /// Keeps the weights of the lowest held-out loss.
    fn note_best(&mut self) -> Result<()> {
        let found = Best {
            step: self.step,
            evaluation: self.state.last.clone(),
        };
        if self
            .state
            .best
            .as_ref()
            .is_some_and(|best| !found.is_below(best))
        {
            self.state.since_best += 1;
            return Ok(());
        }
        self.best_weights.save(self.step, self.model)?;
        self.state.best = Some(found);
        self.state.since_best = 0;
        self.forget_former_bests()
    }

    /// Removes the weights of best steps that neither this run nor a checkpoint that it may be continued from goes back to.
    pub(super) fn forget_former_bests(&self) -> Result<()> {
        if self.plan.patience == 0 {
            return Ok(());
        }
        let checkpoints = self.checkpoints.kept()?;
        // One whose state cannot be read is not continued from.
        let states = checkpoints.iter().filter_map(|c| c.state::<State>().ok());
        let named = states.filter_map(|state| state.best);
        let named = named.chain(self.state.best.clone()).map(|best| best.step);
        Ok(self.best_weights.keep_only(&named.collect::<Vec<_>>())?)
    }

    pub(super) fn is_patience_over(&self) -> bool {
        self.plan.patience > 0 && self.state.since_best >= self.plan.patience
    }
}
