//! `[reward]` and `[judge]`: a reward model trained on preferences.
//!
//! The judge is a second reward model, trained on other pairs, that PPO does not train on: it tells
//! a better policy from one that exploits its reward model. Its initial head, the order of its
//! pairs and its held-out pairs are drawn independently of the reward model's.

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

/// A reward model, trained on preference pairs.
///
/// `[judge]` trains a second one on other pairs, with its own head and order of pairs. PPO never
/// trains on its scores: evaluations report them, to tell a better policy from one that exploits
/// its reward model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reward {
    /// Folder of the model to start from.
    #[schemars(extend("x-type" = "path", "x-default" = TUNED))]
    pub from: PathBuf,
    /// Preference pairs to train on: records with `chosen` and `rejected`, and optionally `prompt`
    /// and `margin`.
    #[schemars(extend("x-default" = "required"))]
    pub data: Data,
    /// Held-out pairs.
    #[serde(flatten)]
    pub held_out: HeldOut,
    /// Weight of the squared mean score in the loss, which keeps scores around zero; 0 leaves them
    /// free.
    pub center_rewards_coefficient: f64,
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
    /// The keys of every stage. `batch_size` counts pairs.
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
