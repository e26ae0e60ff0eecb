//! `[dpo]`: tuning the policy on preferences without a reward model.

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
use crate::rlhf::preference::DpoLossType;

/// Tuning the policy on preference pairs without a reward model.
///
/// Names and defaults are those of TRL's `DPOConfig`, and of its `CPOConfig` for SimPO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Dpo {
    /// Folder of the policy to start from, which is also the reference.
    ///
    /// The adapters of a PEFT folder are trained further if there is a `lora` table, and merged
    /// into their base otherwise.
    #[schemars(extend("x-type" = "path", "x-default" = TUNED))]
    pub from: PathBuf,
    /// Preference pairs to train on: records with `prompt`, `chosen` and `rejected`.
    #[schemars(extend("x-default" = "required"))]
    pub data: Data,
    /// Held-out pairs.
    #[serde(flatten)]
    pub held_out: HeldOut,
    /// Loss to minimise.
    pub loss_type: DpoLossType,
    /// Scale of the log-ratio of policy and reference: the larger, the closer the policy stays to
    /// the reference.
    ///
    /// With SimPO it is the scale of the reward, which its authors set to 2.0 and above.
    pub beta: f64,
    /// Assumed share of pairs whose labels are swapped (cDPO), below 0.5; only with
    /// `loss_type = "sigmoid"`.
    pub label_smoothing: f64,
    /// Target margin between the rewards of chosen and rejected; only with `loss_type = "simpo"`.
    pub simpo_gamma: f64,
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

impl Default for Dpo {
    fn default() -> Self {
        Self {
            from: PathBuf::new(),
            data: Data::default(),
            held_out: HeldOut::default(),
            loss_type: DpoLossType::Sigmoid,
            beta: 0.1,
            label_smoothing: 0.0,
            simpo_gamma: 0.5,
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

impl ExampleTable for Dpo {
    const DATA: &'static str = "name the pairs to train on, for example data = \"pairs.jsonl\"";
    const SHORTEST: (usize, &'static str) = (2, "a pair needs a prompt and answers");

    example_keys!(2, early_stopping_patience);

    fn check_own(&self, keys: &mut Keys<'_, '_>) {
        self.check_loss(keys);
    }
}

impl Dpo {
    fn check_loss(&self, keys: &mut Keys<'_, '_>) {
        keys.above("beta", self.beta, 0.0, "0.1 is usual");
        if !(0.0..0.5).contains(&self.label_smoothing) {
            let message =
                "must be 0 or larger and below 0.5; 0.1 assumes that one pair in ten is swapped";
            keys.wrong("label_smoothing", self.label_smoothing, message);
        }
        keys.not_negative("simpo_gamma", self.simpo_gamma, "0.5 is usual");
        let default = Self::default();
        // Defaults pass, because the file in a run folder writes them out.
        let (smoothed, aimed) = (
            self.label_smoothing != default.label_smoothing,
            self.simpo_gamma != default.simpo_gamma,
        );
        if smoothed && self.loss_type != DpoLossType::Sigmoid {
            let message = "has no effect unless loss_type = \"sigmoid\"; remove it";
            keys.wrong("label_smoothing", self.label_smoothing, message);
        }
        if aimed && self.loss_type != DpoLossType::Simpo {
            let message = "has no effect unless loss_type = \"simpo\"; remove it";
            keys.wrong("simpo_gamma", self.simpo_gamma, message);
        }
    }
}
