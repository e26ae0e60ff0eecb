//! Evaluations on held-out prompts.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Keys, optional_path};

/// The keys of evaluations in `[ppo]`, besides `eval_prompts`, `eval_steps` and `judge_model`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PpoEvaluation {
    /// Largest number of prompts of one evaluation.
    pub eval_samples: usize,
    /// Seed of the completions that evaluations sample, the same in each.
    ///
    /// Must be below 2^63.
    pub eval_seed: u64,
    /// File of words with a valence (`word<TAB>valence` per line), whose sum over a completion
    /// evaluations report.
    #[schemars(extend("x-type" = "path"))]
    #[serde(default, deserialize_with = "optional_path")]
    pub lexicon: Option<PathBuf>,
}

impl Default for PpoEvaluation {
    fn default() -> Self {
        Self {
            eval_samples: 256,
            eval_seed: 0,
            lexicon: None,
        }
    }
}

impl PpoEvaluation {
    pub(super) fn check(&self, keys: &mut Keys<'_, '_>) {
        keys.at_least("eval_samples", self.eval_samples, 1, "256 is usual");
        if i64::try_from(self.eval_seed).is_err() {
            keys.wrong(
                "eval_seed",
                self.eval_seed,
                "must be below 2^63; choose a smaller one",
            );
        }
    }

    /// Keys that differ from their defaults.
    pub(super) fn set_keys(&self) -> Vec<(&'static str, String)> {
        let usual = Self::default();
        let lexicon = self.lexicon.as_ref();
        let typed = [
            (
                "lexicon",
                lexicon.map(|path| format!("\"{}\"", path.display())),
            ),
            (
                "eval_samples",
                (self.eval_samples != usual.eval_samples).then(|| self.eval_samples.to_string()),
            ),
            (
                "eval_seed",
                (self.eval_seed != usual.eval_seed).then(|| self.eval_seed.to_string()),
            ),
        ];
        let set = typed.into_iter();
        set.filter_map(|(key, value)| Some((key, value?))).collect()
    }
}
