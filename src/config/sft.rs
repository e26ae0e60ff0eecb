//! `[sft]`: training on the answers to prompts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::data::{Data, HeldOut};
use super::example_keys::{ExampleTable, example_keys};
use super::optim::Training;
use super::records::{RecordKeys, TooLong};
use super::trainable::Trainable;

/// The `[sft]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sft {
    /// Folder of the model to start from. When unset: `pretrain`'s if the configuration has that
    /// stage, else `model.from`. Always filled once the configuration is read.
    pub from: PathBuf,
    /// Records with `messages` or `conversations`, `prompt` and `completion`, `instruction` and `output`, or `text`. Required.
    pub data: Data,
    /// Held-out records.
    #[serde(flatten)]
    pub held_out: HeldOut,
    /// Most tokens of one example, prompt and answer together.
    pub max_length: usize,
    /// What happens to a longer one.
    pub too_long: TooLong,
    /// Columns, and bad records.
    #[serde(flatten)]
    pub records: RecordKeys,
    /// Which answers of a conversation are learned.
    pub learn: Learn,
    /// Which weights are trained.
    #[serde(flatten)]
    pub trainable: Trainable,
    /// Each layer's learning rate as a share of the one above it; 1 treats all alike.
    pub layerwise_lr_decay: f64,
    /// Evaluations without a new best loss after which training ends, and the best weights are
    /// kept; 0 trains on to the end and keeps the last.
    pub early_stopping_patience: usize,
    /// The keys that every stage has. `batch_size` counts examples.
    #[serde(flatten)]
    pub training: Training,
}

/// Which of the assistant's turns in a conversation are learned. In `prompt` + `completion` those of
/// the completion are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Learn {
    /// Every one, each after the history that inference gives it. Where the chat template renders
    /// earlier turns otherwise once later ones are there, each answer is an example of its own.
    All,
    /// The last one alone.
    Last,
}

impl Default for Sft {
    fn default() -> Self {
        Self {
            from: PathBuf::new(),
            data: Data::default(),
            held_out: HeldOut::default(),
            max_length: 1024,
            too_long: TooLong::Truncate,
            records: RecordKeys::default(),
            learn: Learn::All,
            trainable: Trainable::default(),
            layerwise_lr_decay: 1.0,
            early_stopping_patience: 0,
            training: Training {
                learning_rate: 2e-5,
                ..Training::default()
            },
        }
    }
}

impl ExampleTable for Sft {
    const DATA: &'static str = "name the records to train on, for example data = \"sft.jsonl\"";
    const SHORTEST: (usize, &'static str) = (2, "an example needs a prompt and an answer");

    example_keys!(1, early_stopping_patience);

    fn check_own(&self, keys: &mut Keys<'_, '_>) {
        if !(self.layerwise_lr_decay > 0.0 && self.layerwise_lr_decay <= 1.0) {
            keys.wrong(
                "layerwise_lr_decay",
                self.layerwise_lr_decay,
                "must be above 0 and at most 1; 1 is off",
            );
        }
    }
}
