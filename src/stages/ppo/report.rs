//! Metrics of an iteration's rollout.

use anyhow::Result;

use super::PpoRun;
use super::collect::Collected;
use super::state::RolloutMeans;
use crate::rlhf::stats::mean;
use crate::train::metrics::{Metrics, names};

impl PpoRun<'_> {
    /// Sets the metrics of the rollout, and prints the iteration's progress line.
    ///
    /// # Errors
    /// If the experience has no log-probs of the policy.
    pub(super) fn report(&mut self, metrics: &mut Metrics, collected: &Collected) -> Result<()> {
        let (experience, old) = (&collected.experience, collected.experience.policy()?);
        let sequences = experience.sequences();
        let (tokens, count) = (experience.token_count() as f64, sequences.len() as f64);
        let finished = sequences.iter().filter(|s| s.finished).count() as f64;
        let seconds = metrics.get(names::TIME_ROLLOUT).unwrap_or(f64::NAN);
        metrics
            .set(names::OBJECTIVE_ENTROPY, mean(&old.entropies))
            .set(
                names::ROLLOUT_TOKENS_PER_SECOND,
                collected.tokens as f64 / seconds,
            )
            .set(names::ROLLOUT_LENGTH_MEAN, tokens / count)
            .set(names::ROLLOUT_EOS_FRACTION, finished / count)
            .set(names::TRAIN_SKIPPED_STEPS, self.state.skipped as f64);
        if self.rescores() {
            let recorded = experience.recorded();
            let drawn = recorded.log_probs.iter().zip(&old.log_probs);
            let whole = recorded.whole_log_probs.iter().zip(&old.whole_log_probs);
            let gap = drawn.chain(whole).map(|(a, b)| f64::from((a - b).abs()));
            metrics.set(names::ROLLOUT_LOG_PROB_MAX_DEV, gap.fold(0.0, f64::max));
        }
        if old.entropies.iter().all(|&entropy| entropy == 0.0) {
            self.note_no_choice();
        }
        metrics.set_memory(self.context.backend)?;
        let means = RolloutMeans {
            score: mean(&experience.scores().total),
            kl: metrics.get(names::OBJECTIVE_KL),
            entropy: mean(&old.entropies),
            length: tokens / count,
        };
        let first = self.state.rollouts.map_or(means, |[first, _]| first);
        self.state.rollouts = Some([first, means]);
        let shown = [
            ("score", names::OBJECTIVE_SCORES),
            ("kl", names::OBJECTIVE_KL),
        ];
        let shown = shown
            .iter()
            .filter_map(|(label, name)| Some((*label, metrics.get(name)?)));
        let shown: Vec<_> = shown.collect();
        self.stage.progress.step(self.state.iteration, &shown);
        Ok(())
    }

    /// Notes that sampling left one candidate at every position, so that the gradient is 0.
    fn note_no_choice(&self) {
        self.stage.progress.note(&format!(
            "iteration {}: at every position only one token could be drawn, so the policy learns \
             nothing from its scores; raise ppo.temperature, or loosen ppo.top_k, ppo.top_p or \
             ppo.min_p",
            self.state.iteration
        ));
    }
}
