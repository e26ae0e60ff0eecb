//! `[orpo]`: tuning the policy on preferences without a reference.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::data::{Data, HeldOut};
use super::example_keys::{ExampleTable, example_keys};
use super::optim::Training;
use super::records::{RecordKeys, TooLong};
use super::sft::TUNED;
use super::trainable::Trainable;

/// Tuning the policy on preference pairs without a reference (ORPO, Hong et al. 2024).
///
/// Names and defaults are those of TRL's `ORPOConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Orpo {
    /// Folder of the policy to start from.
    #[schemars(extend("x-type" = "path", "x-default" = TUNED))]
    pub from: PathBuf,
    /// Preference pairs to train on: records with `prompt`, `chosen` and `rejected`.
    #[schemars(extend("x-default" = "required"))]
    pub data: Data,
    /// Held-out pairs.
    #[serde(flatten)]
    pub held_out: HeldOut,
    /// Weight of the odds-ratio loss relative to the negative log-likelihood of the chosen
    /// sequences (λ in the paper).
    pub beta: f64,
    /// Largest number of tokens of prompt and answer together; the model's context limits it too.
    pub max_length: usize,
    /// Policy for pairs with more tokens than `max_length` in prompt and answer.
    pub too_long: TooLong,
    /// Columns and bad records.
    #[serde(flatten)]
    pub records: RecordKeys,
    /// Weights that are trained.
    #[serde(flatten)]
    pub trainable: Trainable,
    /// Number of evaluations without a new lowest loss after which training stops and keeps the
    /// best weights; 0 trains to the end and keeps the last.
    pub early_stopping_patience: usize,
    /// The keys of every stage. `batch_size` counts pairs.
    #[serde(flatten)]
    pub training: Training,
}

impl Default for Orpo {
    fn default() -> Self {
        Self {
            from: PathBuf::new(),
            data: Data::default(),
            held_out: HeldOut::default(),
            beta: 0.1,
            max_length: 1024,
            too_long: TooLong::Truncate,
            records: RecordKeys::default(),
            trainable: Trainable::default(),
            early_stopping_patience: 0,
            training: Training {
                learning_rate: 1e-6,
                ..Training::default()
            },
        }
    }
}

impl ExampleTable for Orpo {
    const DATA: &'static str = "name the pairs to train on, for example data = \"pairs.jsonl\"";
    const SHORTEST: (usize, &'static str) = (2, "a pair needs a prompt and answers");

    example_keys!(2, early_stopping_patience);

    fn check_own(&self, keys: &mut Keys<'_, '_>) {
        let mend = "0.1 is usual, 0 learns only the chosen answers";
        keys.not_negative("beta", self.beta, mend);
    }
}
