//! `[dpo]`: tuning the policy on preferences without a reward model. Names and defaults are those of TRL's `DPOConfig`, and of its
//! `CPOConfig` for SimPO.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::data::{Data, HeldOut};
use super::example_keys::{ExampleTable, example_keys};
use super::optim::Training;
use super::records::{RecordKeys, TooLong};
use super::trainable::Trainable;
use crate::rlhf::preference::DpoLossType;

/// The `[dpo]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dpo {
    /// Folder of the policy to start from, which is the reference too. A PEFT folder's adapters are
    /// trained further where there is a `lora` table, else merged. When unset: `sft`'s if the
    /// configuration has that stage, else `pretrain`'s, else `model.from`. Always filled once the
    /// configuration is read.
    pub from: PathBuf,
    /// Records with `prompt`, `chosen` and `rejected`. Required.
    pub data: Data,
    /// Held-out pairs.
    #[serde(flatten)]
    pub held_out: HeldOut,
    /// What is minimised.
    pub loss_type: DpoLossType,
    /// How much the log-ratio of policy and reference weighs: the larger, the closer the policy
    /// stays. With SimPO the scale of the reward, which its authors set to 2.0 and above.
    pub beta: f64,
    /// Share of the pairs that are taken to be labelled the wrong way round; for `sigmoid` alone.
    pub label_smoothing: f64,
    /// Margin of the rewards that is aimed at; for `simpo` alone.
    pub simpo_gamma: f64,
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
    /// kept; 0 trains on to the end and keeps the last.
    pub early_stopping_patience: usize,
    /// The keys that every stage has. `batch_size` counts pairs.
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
            let message = "must be 0 or larger and below 0.5; 0.1 takes one pair in ten for wrong";
            keys.wrong("label_smoothing", self.label_smoothing, message);
        }
        keys.not_negative("simpo_gamma", self.simpo_gamma, "0.5 is usual");
        let default = Self::default();
        // Defaults pass, for the file in a run folder writes them out.
        let (smoothed, aimed) = (
            self.label_smoothing != default.label_smoothing,
            self.simpo_gamma != default.simpo_gamma,
        );
        if smoothed && self.loss_type != DpoLossType::Sigmoid {
            let message = "is of no use unless loss_type = \"sigmoid\"; remove it";
            keys.wrong("label_smoothing", self.label_smoothing, message);
        }
        if aimed && self.loss_type != DpoLossType::Simpo {
            let message = "is of no use unless loss_type = \"simpo\"; remove it";
            keys.wrong("simpo_gamma", self.simpo_gamma, message);
        }
    }
}
