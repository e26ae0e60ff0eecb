//! The keys that every stage has: how long it trains, how it steps, when it saves.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::data::HeldOut;

/// The keys of every stage, in the stage's own table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Training {
    /// Number of optimizer steps (in `[ppo]`, of iterations); 0 trains for `max_epochs`.
    pub max_steps: usize,
    /// Number of passes over the data, when `max_steps` is 0.
    ///
    /// May be a fraction; it is rounded up to whole steps.
    #[schemars(extend("x-default" = "1.0 if `max_steps` is 0"))]
    pub max_epochs: Option<f64>,
    /// Peak learning rate of AdamW, reached after the warm-up.
    pub learning_rate: f64,
    /// Shape of the decay of the learning rate after the warm-up.
    pub lr_scheduler_type: LrScheduler,
    /// Number of steps over which the learning rate rises linearly to its peak.
    ///
    /// Step s of w warm-up steps has s / (w + 1) of the peak, and step w + 1 the peak.
    pub warmup_steps: usize,
    /// Learning rate at the end of the schedule as a share of the peak, between 0 and 1.
    ///
    /// The last step's rate is just above it.
    pub min_lr_ratio: f64,
    /// Number of examples in one optimizer step (in `[ppo]`, of completions in one iteration).
    ///
    /// An example is a row of `context_length` tokens in `[pretrain]`, a record in `[sft]`, a pair
    /// in `[dpo]`, `[orpo]`, `[reward]` and `[judge]`.
    pub batch_size: usize,
    /// Whether an epoch drops its last batch when the records do not fill it.
    ///
    /// Refused in `[ppo]`, whose batches are always full.
    pub dataloader_drop_last: bool,
    /// Largest number of tokens in one forward pass.
    ///
    /// Gradients of a larger batch are accumulated over several passes; a smaller value saves
    /// memory.
    pub micro_batch_tokens: usize,
    /// Decoupled weight decay of AdamW, applied to matrices only.
    pub weight_decay: f64,
    /// Decay rate of AdamW's first moment, from 0 to below 1.
    pub adam_beta1: f64,
    /// Decay rate of AdamW's second moment, from 0 to below 1.
    pub adam_beta2: f64,
    /// Epsilon of AdamW.
    pub adam_epsilon: f64,
    /// Largest global norm of the gradients, to which larger ones are clipped; 0 does not clip.
    pub max_grad_norm: f64,
    /// Number of steps between checkpoints; 0 saves only at the end.
    pub save_steps: usize,
    /// Number of steps between evaluations; 0 evaluates only at the start and at the end.
    pub eval_steps: usize,
    /// Number of newest checkpoints to keep.
    pub keep_last: usize,
    /// Keep every checkpoint whose step is a multiple of this number; 0 keeps only the `keep_last`
    /// newest.
    pub keep_every: usize,
    /// Activations that the backward pass computes again instead of keeping (gradient
    /// checkpointing).
    pub recompute: Recompute,
    /// Number of steps between progress lines where standard error is a file or a pipe.
    ///
    /// Lines are at least 2 seconds apart, and after 30 seconds without a line the next step has
    /// one. A terminal shows one line, which changes with every step. `metrics.jsonl` has a line
    /// for every step.
    pub log_steps: usize,
}

/// Shape of the decay of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LrScheduler {
    /// Along half a cosine to `min_lr_ratio`.
    Cosine,
    /// Along a straight line to `min_lr_ratio`.
    Linear,
    /// Stays at the peak.
    Constant,
}

/// Activations that the backward pass computes again instead of keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// All activations are kept.
    None,
    /// Each layer is computed again from its input: less memory, one more forward pass.
    Block,
}

/// Length of a stage's training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TrainingLength {
    /// This many steps.
    Steps(usize),
    /// This many passes over the data.
    Epochs(f64),
}

impl Default for Training {
    /// Common defaults. Stages have their own learning rates, batch sizes and intervals.
    fn default() -> Self {
        Self {
            max_steps: 0,
            max_epochs: None,
            learning_rate: 1e-5,
            lr_scheduler_type: LrScheduler::Cosine,
            warmup_steps: 0,
            min_lr_ratio: 0.0,
            batch_size: 32,
            dataloader_drop_last: false,
            micro_batch_tokens: 4096,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.95,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            save_steps: 100,
            eval_steps: 100,
            keep_last: 2,
            keep_every: 0,
            recompute: Recompute::None,
            log_steps: 1,
        }
    }
}

impl Training {
    /// Length of the stage's training.
    pub fn length(&self) -> TrainingLength {
        match (self.max_steps, self.max_epochs) {
            (0, epochs) => TrainingLength::Epochs(epochs.unwrap_or(1.0)),
            (steps, _) => TrainingLength::Steps(steps),
        }
    }

    /// Reports values out of range; `usual` are the stage's defaults.
    pub(super) fn check(&self, usual: &Self, keys: &mut Keys<'_, '_>) {
        self.check_length(keys);
        self.check_optimizer(keys);
        self.check_min_lr(usual, keys);
        keys.at_least("batch_size", self.batch_size, 1, "32 is usual");
        keys.at_least(
            "micro_batch_tokens",
            self.micro_batch_tokens,
            1,
            "4096 is usual; less saves memory",
        );
        keys.at_least(
            "keep_last",
            self.keep_last,
            1,
            "a run is continued from a checkpoint",
        );
        keys.at_least("log_steps", self.log_steps, 1, "1 shows every step");
    }

    fn check_length(&self, keys: &mut Keys<'_, '_>) {
        let Some(epochs) = self.max_epochs else {
            return;
        };
        keys.above("max_epochs", epochs, 0.0, "1.0 is one pass over the data");
        if self.max_steps > 0 {
            keys.wrong(
                "max_epochs",
                epochs,
                format!("max_steps = {} is set too; remove one", self.max_steps),
            );
        }
    }

    fn check_optimizer(&self, keys: &mut Keys<'_, '_>) {
        keys.not_negative("learning_rate", self.learning_rate, "0 trains nothing");
        keys.not_negative("weight_decay", self.weight_decay, "0 switches it off");
        for (key, beta) in [
            ("adam_beta1", self.adam_beta1),
            ("adam_beta2", self.adam_beta2),
        ] {
            if !(0.0..1.0).contains(&beta) {
                keys.wrong(
                    key,
                    beta,
                    "must be 0 or larger and below 1; 0.9 and 0.95 are usual",
                );
            }
        }
        keys.above("adam_epsilon", self.adam_epsilon, 0.0, "1e-8 is usual");
        keys.not_negative(
            "max_grad_norm",
            self.max_grad_norm,
            "1.0 is usual, 0 does not clip",
        );
        if self.max_steps > 0 && self.warmup_steps > self.max_steps {
            let message = format!("is longer than max_steps = {}; shorten it", self.max_steps);
            keys.wrong("warmup_steps", self.warmup_steps, message);
        }
    }

    fn check_min_lr(&self, usual: &Self, keys: &mut Keys<'_, '_>) {
        let ratio = self.min_lr_ratio;
        keys.between(
            "min_lr_ratio",
            ratio,
            0.0,
            1.0,
            "it is a share of learning_rate",
        );
        // The default passes, because the file in a run folder writes it out.
        if self.lr_scheduler_type == LrScheduler::Constant && ratio != usual.min_lr_ratio {
            let message = "has no effect with lr_scheduler_type = \"constant\"; set \"cosine\" or \
                           \"linear\", or remove this key";
            keys.wrong("min_lr_ratio", ratio, message);
        }
    }

    /// `eval_steps`, if it differs from the stage's default and is not 0.
    pub(super) fn changed_eval_steps(&self, usual: &Self) -> Option<usize> {
        let steps = self.eval_steps;
        (steps != usual.eval_steps && steps > 0).then_some(steps)
    }

    /// Reports values out of range, for a stage that may hold out some of its records.
    pub(super) fn check_with(&self, held_out: &HeldOut, usual: &Self, keys: &mut Keys<'_, '_>) {
        self.check(usual, keys);
        if held_out.is_empty() {
            self.refuse_eval_steps(usual, "eval_data or eval_fraction", keys);
        }
    }

    /// Reports `eval_steps` without held-out records; `held_out_keys` are the keys that set them.
    pub(super) fn refuse_eval_steps(
        &self,
        usual: &Self,
        held_out_keys: &str,
        keys: &mut Keys<'_, '_>,
    ) {
        if let Some(steps) = self.changed_eval_steps(usual) {
            let message = format!(
                "has no effect without held-out records; set {held_out_keys}, or remove this key"
            );
            keys.wrong("eval_steps", steps, message);
        }
    }

    /// Reports early stopping without evaluations on held-out records.
    pub(super) fn check_patience(
        &self,
        patience: usize,
        held_out: &HeldOut,
        keys: &mut Keys<'_, '_>,
    ) {
        if patience > 0 && (held_out.is_empty() || self.eval_steps == 0) {
            let message = "early stopping needs eval_steps and held-out records; set eval_data or \
                           eval_fraction";
            keys.wrong("early_stopping_patience", patience, message);
        }
    }

    /// Reports a forward pass that cannot hold a row of `length` tokens, the value of `key`.
    pub(super) fn check_row(&self, key: &str, length: usize, keys: &mut Keys<'_, '_>) {
        let message =
            format!("cannot hold one row of {key} = {length} tokens; raise it to {length} or more");
        if self.micro_batch_tokens < length {
            keys.wrong("micro_batch_tokens", self.micro_batch_tokens, message);
        }
    }
}
