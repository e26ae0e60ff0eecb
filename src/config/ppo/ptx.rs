//! The keys of `[ppo]` that mix pretraining text into the update: PPO-ptx (Ouyang et al. 2022, eq.
//! 2).

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Keys;
use crate::config::Data;

/// Keys of the pretraining mix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ptx {
    /// Weight of the next-token loss on `ptx_data` in each update of the policy (γ of InstructGPT's
    /// PPO-ptx); 0 mixes in no text.
    ///
    /// The loss is a mean over tokens.
    pub ptx_coef: f64,
    /// Pretraining text to mix in: `.txt` files, or records with `text`.
    ///
    /// Several files are read as one.
    #[schemars(extend("x-default" = "required if `ptx_coef` is above 0"))]
    pub ptx_data: Data,
    /// Number of rows of text in one optimizer step.
    #[schemars(extend("x-default" = "the sequences of a minibatch"))]
    pub ptx_batch_size: Option<usize>,
    /// Number of tokens of a row of text.
    pub ptx_length: usize,
}

impl Default for Ptx {
    fn default() -> Self {
        Self {
            ptx_coef: 0.0,
            ptx_data: Data::default(),
            ptx_batch_size: None,
            ptx_length: 128,
        }
    }
}

impl Ptx {
    /// Whether text is mixed in.
    pub fn is_on(&self) -> bool {
        self.ptx_coef != 0.0
    }

    /// Number of rows of text in an optimizer step; 0 without mixed-in text.
    pub fn rows(&self) -> usize {
        self.ptx_batch_size.unwrap_or(0)
    }

    pub(super) fn fill(&mut self, mini_batch_size: usize) {
        if self.is_on() {
            self.ptx_batch_size.get_or_insert(mini_batch_size);
        }
    }

    pub(super) fn check(&self, keys: &mut Keys<'_, '_>) {
        keys.not_negative(
            "ptx_coef",
            self.ptx_coef,
            "1.0 weighs the text like the responses, 0 mixes in no text",
        );
        if !self.is_on() {
            return self.check_unused(keys);
        }
        if self.ptx_data.is_empty() {
            keys.missing(
                "ptx_data",
                "it is the text that ptx_coef weighs; for example ptx_data = \"train.txt\". Or set \
                 ptx_coef = 0",
            );
        }
        self.ptx_data.check_unweighted("ptx_data", keys);
        keys.at_least(
            "ptx_batch_size",
            self.rows(),
            1,
            "remove it to take as many rows as a minibatch has sequences",
        );
        let mend = "a row needs a token and the next one; 128 is usual";
        keys.at_least("ptx_length", self.ptx_length, 2, mend);
    }

    /// Reports the other keys when `ptx_coef` is 0.
    fn check_unused(&self, keys: &mut Keys<'_, '_>) {
        let default = Self::default();
        let first = self.ptx_data.paths().next();
        let typed = [
            ("ptx_data", first.map(|p| format!("\"{}\"", p.display()))),
            ("ptx_batch_size", self.ptx_batch_size.map(|n| n.to_string())),
            (
                "ptx_length",
                (self.ptx_length != default.ptx_length).then(|| self.ptx_length.to_string()),
            ),
        ];
        for (key, value) in typed {
            let Some(value) = value else { continue };
            let message = "has no effect while ptx_coef is 0; set that above 0, or remove this key";
            keys.wrong(key, value, message);
        }
    }

    /// The data files by key.
    pub(super) fn data_files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.ptx_data.paths().map(|path| ("ptx_data", path))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{refused, resolve};
    use crate::config::{Ptx, Stage};

    fn ptx(overrides: &[&str]) -> Ptx {
        resolve(overrides).unwrap().ppo.unwrap().update.ptx
    }

    const ON: [&str; 2] = ["ppo.ptx_coef=0.5", "ppo.ptx_data=[\"a.txt\", \"b.txt\"]"];

    #[test]
    fn a_step_takes_as_many_rows_as_a_minibatch_has_sequences() {
        let quarter = [&ON[..], &["ppo.num_mini_batches=4"]].concat();
        assert_eq!(ptx(&quarter).ptx_batch_size, Some(16));
        let chosen = [&ON[..], &["ppo.ptx_batch_size=3"]].concat();
        assert_eq!(ptx(&chosen).rows(), 3);
        assert_eq!(ptx(&[]).ptx_batch_size, None);
    }

    #[test]
    fn its_text_is_among_the_stage_s_files() {
        let config = resolve(&ON).unwrap();
        let files = config.data_files(Stage::Ppo);
        let text = files.iter().filter(|(key, _)| *key == "ptx_data");
        assert_eq!(text.count(), 2, "{files:?}");
    }

    #[test]
    fn a_weight_without_text_and_text_without_a_weight_are_refused() {
        refused(&ON[..1], &["ppo.ptx_data", "is required", "ptx_coef = 0"]);
        for key in ["ptx_data=a.txt", "ptx_batch_size=4", "ptx_length=64"] {
            let name = key.split('=').next().unwrap();
            refused(
                &[&format!("ppo.{key}")],
                &[&format!("ppo.{name}"), "no effect", "ptx_coef"],
            );
        }
    }

    #[test]
    fn rows_that_cannot_be_are_refused() {
        for (set, word) in [
            ("ppo.ptx_batch_size=0", "at least 1"),
            ("ppo.ptx_length=1", "at least 2"),
            ("ppo.ptx_coef=-1.0", "zero or larger"),
        ] {
            let key = set.split('=').next().unwrap();
            refused(&[ON[0], ON[1], set], &[key, word]);
        }
        let weighted = "ppo.ptx_data=[{ path = \"a.txt\", weight = 2.0 }]";
        refused(&[ON[0], weighted], &["ppo.ptx_data", "takes no weights"]);
    }
}
