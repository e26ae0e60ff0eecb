//! `[reward]` and `[judge]`: a reward model trained on preferences.
//!
//! The judge is a second reward model, trained on other pairs and never seen by PPO: it tells a
//! policy that has become better from one that has learnt its reward model's weaknesses. It draws
//! its first head, the order of its pairs and those that it holds out apart from the reward model's.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::data::{Data, HeldOut};
use super::example_keys::{ExampleTable, example_keys};
use super::optim::Training;
use super::records::{RecordKeys, TooLong};
use super::trainable::Trainable;

/// The `[reward]` table, and the `[judge]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// Folder of the model to start from. When unset: `sft`'s if the configuration has that stage,
    /// else `pretrain`'s, else `model.from`. Always filled once the configuration is read.
    pub from: PathBuf,
    /// Records with `chosen` and `rejected` (`prompt` and `margin` optional). Required.
    pub data: Data,
    /// Held-out pairs.
    #[serde(flatten)]
    pub held_out: HeldOut,
    /// Weight of the squared mean score, which keeps scores around zero; 0 leaves them free.
    pub center_rewards_coefficient: f64,
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
    /// The keys that every stage has. `batch_size` counts pairs.
    #[serde(flatten)]
    pub training: Training,
}

impl Default for Reward {
    fn default() -> Self {
        Self {
            from: PathBuf::new(),
            data: Data::default(),
            held_out: HeldOut::default(),
            center_rewards_coefficient: 0.0,
            max_length: 1024,
            too_long: TooLong::Truncate,
            records: RecordKeys::default(),
            trainable: Trainable::default(),
            training: Training {
                learning_rate: 1e-5,
                ..Training::default()
            },
        }
    }
}

impl ExampleTable for Reward {
    const DATA: &'static str = "name the pairs to train on, for example data = \"pairs.jsonl\"";
    const SHORTEST: (usize, &'static str) = (1, "an answer needs a token");

    example_keys!(2);

    fn check_own(&self, keys: &mut Keys<'_, '_>) {
        keys.not_negative(
            "center_rewards_coefficient",
            self.center_rewards_coefficient,
            "0.01 is usual, 0 switches it off",
        );
    }
}
