//! `[sft]`: training on the answers to prompts.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::data::{Data, HeldOut};
use super::example_keys::{ExampleTable, example_keys};
use super::optim::Training;
use super::records::{RecordKeys, TooLong};
use super::trainable::Trainable;

/// Default of `from` in the stages after `[sft]`, in the reference.
pub(super) const TUNED: &str = "what `[sft]` or `[pretrain]` trains, else `model.from`";

/// Supervised fine-tuning on answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sft {
    /// Folder of the model to start from.
    #[schemars(extend(
        "x-type" = "path",
        "x-default" = "what `[pretrain]` trains, else `model.from`"
    ))]
    pub from: PathBuf,
    /// Records to train on: with `messages` or `conversations`, `prompt` and `completion`,
    /// `instruction` and `output`, or `text`.
    #[schemars(extend("x-default" = "required"))]
    pub data: Data,
    /// Held-out records.
    #[serde(flatten)]
    pub held_out: HeldOut,
    /// Largest number of tokens of an example, prompt and answer together; the model's context
    /// limits it too.
    pub max_length: usize,
    /// Policy for examples with more tokens than `max_length`.
    pub too_long: TooLong,
    /// Columns and bad records.
    #[serde(flatten)]
    pub records: RecordKeys,
    /// Assistant turns of a conversation that the loss counts.
    ///
    /// In records of `prompt` and `completion`, these are the turns of the completion.
    pub learn: Learn,
    /// Weights that are trained.
    #[serde(flatten)]
    pub trainable: Trainable,
    /// Learning rate of each layer as a share of the layer above it; 1.0 trains all layers alike.
    pub layerwise_lr_decay: f64,
    /// Number of evaluations without a new lowest loss after which training stops and keeps the
    /// best weights; 0 trains to the end and keeps the last.
    pub early_stopping_patience: usize,
    /// The keys of every stage. `batch_size` counts examples.
    #[serde(flatten)]
    pub training: Training,
}

/// Assistant turns of a conversation that the loss counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Learn {
    /// All turns, each after the history that inference would give it.
    // If the chat template renders earlier turns differently once later turns follow, each answer
    // becomes an example of its own.
    All,
    /// The last turn.
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
                "must be above 0 and at most 1; 1 trains all layers alike",
            );
        }
    }
}
