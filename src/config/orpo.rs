//! `[orpo]`: tuning the policy on preferences without a reference. Names and defaults are those of
//! TRL's `ORPOConfig`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::data::{Data, HeldOut};
use super::example_keys::{ExampleTable, example_keys};
use super::optim::Training;
use super::records::{RecordKeys, TooLong};
use super::trainable::Trainable;

/// The `[orpo]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Orpo {
    /// Folder of the policy to start from. When unset: `sft`'s if the configuration has that stage,
    /// else `pretrain`'s, else `model.from`. Always filled once the configuration is read.
    pub from: PathBuf,
    /// Records with `prompt`, `chosen` and `rejected`. Required.
    pub data: Data,
    /// Held-out pairs.
    #[serde(flatten)]
    pub held_out: HeldOut,
    /// Weight of the odds-ratio loss beside the negative log-likelihood of the chosen sequences;
    /// the paper calls it λ.
    pub beta: f64,
    /// Most tokens of prompt and answer together.
    pub max_length: usize,
    /// Policy for a longer pair.
    pub too_long: TooLong,
    /// Columns, and bad records.
    #[serde(flatten)]
    pub records: RecordKeys,
    /// Which weights are trained.
    #[serde(flatten)]
    pub trainable: Trainable,
    /// Evaluations without a new best loss after which training ends, and the best weights are
    /// kept; 0 trains to the end and keeps the last weights.
    pub early_stopping_patience: usize,
    /// The keys that every stage has. `batch_size` counts pairs.
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
        let mend = "0.1 is usual, 0 learns the chosen answers alone";
        keys.not_negative("beta", self.beta, mend);
    }
}
