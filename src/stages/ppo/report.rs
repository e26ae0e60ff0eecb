//! What an iteration's rollout was like.

use super::Run;
use super::batch::Gathered;
use crate::rlhf::stats::mean;
use crate::roles::{Experience, TokenScores};
use crate::train::memory::peak_bytes;
use crate::train::metrics::{Metrics, names};

impl Run<'_> {
    /// What the rollout was like, on the terminal too.
    pub(super) fn report(
        &mut self,
        metrics: &mut Metrics,
        gathered: &Gathered,
        experience: &Experience,
        old: &TokenScores,
    ) {
        let sequences = experience.sequences();
        let (tokens, count) = (experience.token_count() as f64, sequences.len() as f64);
        let finished = sequences.iter().filter(|s| s.finished).count() as f64;
        let seconds = metrics.get(names::TIME_ROLLOUT).unwrap_or(f64::NAN);
        metrics
            .set(names::OBJECTIVE_ENTROPY, mean(&old.entropy))
            .set(
                names::ROLLOUT_TOKENS_PER_SECOND,
                gathered.tokens as f64 / seconds,
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
        if old.entropy.iter().all(|&entropy| entropy == 0.0) {
            self.note_no_choice();
        }
        if let Some(bytes) = peak_bytes() {
            metrics.set(names::MEMORY_PEAK_BYTES, bytes as f64);
        }
        let shown = [
            ("score", names::OBJECTIVE_SCORES),
            ("kl", names::OBJECTIVE_KL),
        ];
        let shown = shown
            .iter()
            .filter_map(|(label, name)| Some((*label, metrics.get(name)?)));
        let shown: Vec<_> = shown.collect();
        self.progress.step(self.state.iteration, &shown);
    }

    /// Says that sampling left one token at every place: the gradient of its log-prob is 0.
    fn note_no_choice(&self) {
        self.progress.note(&format!(
            "iteration {}: one token alone could be drawn at every place, so that the policy learns nothing from its scores; raise \
             ppo.temperature, or cut less by ppo.top_k, ppo.top_p or ppo.min_p",
            self.state.iteration
        ));
    }
}
