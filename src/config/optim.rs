//! The keys that every stage has: how long it trains, how it steps, when it saves.

use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::data::HeldOut;

/// The keys common to all stages. They stand in the stage's own table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Optimizer steps (PPO: iterations); 0 takes `max_epochs`, or one epoch if that is unset too.
    pub max_steps: usize,
    /// Passes over the data, instead of `max_steps`; a fraction of one is rounded up to whole steps.
    pub max_epochs: Option<f64>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the learning rate falls after the warm-up.
    pub lr_scheduler_type: LrScheduler,
    /// Steps over which the learning rate rises linearly: step s of w has s / (w + 1) of the peak, and step w + 1 the peak.
    pub warmup_steps: usize,
    /// Learning rate that the decay falls to, as a share of the peak. It would reach it on the step after the last.
    pub min_lr_ratio: f64,
    /// Rows of one optimizer step (reward: pairs; PPO: sequences of one iteration).
    pub batch_size: usize,
    /// True if the records that do not fill the last batch of an epoch are left out of it, rather than being a short batch. Refused
    /// in `[ppo]`, whose iterations are always whole.
    pub dataloader_drop_last: bool,
    /// Most tokens in one forward pass; a batch above it is accumulated in several.
    pub micro_batch_tokens: usize,
    /// Decoupled weight decay of the matrices.
    pub weight_decay: f64,
    /// AdamW's decay of the first moment.
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Global norm that gradients are clipped to; 0 does not clip.
    pub max_grad_norm: f64,
    /// Steps between checkpoints; 0 saves none before the end.
    pub save_steps: usize,
    /// Steps between evaluations; 0 evaluates at the start and the end only.
    pub eval_steps: usize,
    /// Newest checkpoints that are kept.
    pub keep_last: usize,
    /// Checkpoints at multiples of this step are kept for good; 0 keeps none.
    pub keep_every: usize,
    /// What the backward pass computes again rather than keeps.
    pub recompute: Recompute,
    /// Steps between lines on the terminal. `metrics.jsonl` has every step.
    pub log_steps: usize,
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScheduler {
    /// Half a cosine down to `min_lr_ratio`.
    Cosine,
    /// A straight line down to `min_lr_ratio`.
    Linear,
    /// It does not.
    Constant,
}

/// What the backward pass computes again rather than keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing: all activations are kept.
    None,
    /// Each block from its input: less memory, one more forward pass.
    Block,
}

/// How long a stage trains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// This many steps.
    Steps(usize),
    /// This many passes over the data.
    Epochs(f64),
}

impl Default for Training {
    /// The defaults that are no stage's own: stages set their learning rate, batch and cadence.
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
    /// How long the stage trains.
    pub fn length(&self) -> Length {
        match (self.max_steps, self.max_epochs) {
            (0, epochs) => Length::Epochs(epochs.unwrap_or(1.0)),
            (steps, _) => Length::Steps(steps),
        }
    }

    /// Notes values out of range; `usual` are the stage's defaults.
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
            "a run without a checkpoint cannot be continued",
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
        // Defaults pass, for the file in a run folder writes them out.
        if self.lr_scheduler_type == LrScheduler::Constant && ratio != usual.min_lr_ratio {
            let message = "is of no use while lr_scheduler_type is \"constant\"; set that to \"cosine\" or \"linear\", or remove this key";
            keys.wrong("min_lr_ratio", ratio, message);
        }
    }

    /// `eval_steps`, if someone set it beside the stage's defaults. 0 passes anywhere, for it asks for no evaluation.
    pub(super) fn asked_eval_steps(&self, usual: &Self) -> Option<usize> {
        let steps = self.eval_steps;
        (steps != usual.eval_steps && steps > 0).then_some(steps)
    }

    /// [`Self::check`] for a stage that may hold out some of its records.
    pub(super) fn check_with(&self, held_out: &HeldOut, usual: &Self, keys: &mut Keys<'_, '_>) {
        self.check(usual, keys);
        if held_out.is_empty() {
            self.refuse_eval_steps(usual, "eval_data or eval_fraction", keys);
        }
    }

    /// Without held-out records nothing is evaluated, and `eval_steps` was set in vain; `keys_of_them` are the keys that name some.
    pub(super) fn refuse_eval_steps(
        &self,
        usual: &Self,
        keys_of_them: &str,
        keys: &mut Keys<'_, '_>,
    ) {
        if let Some(steps) = self.asked_eval_steps(usual) {
            let message = format!(
                "is of no use without held-out records; set {keys_of_them}, or remove this key"
            );
            keys.wrong("eval_steps", steps, message);
        }
    }

    /// Early stopping looks at evaluations on held-out records.
    pub(super) fn check_patience(
        &self,
        patience: usize,
        held_out: &HeldOut,
        keys: &mut Keys<'_, '_>,
    ) {
        if patience > 0 && (held_out.is_empty() || self.eval_steps == 0) {
            let message = "early stopping needs eval_steps and held-out records; set eval_data or eval_fraction";
            keys.wrong("early_stopping_patience", patience, message);
        }
    }

    /// One forward pass must hold at least one row of `length` tokens, the value of `key`.
    pub(super) fn check_row(&self, key: &str, length: usize, keys: &mut Keys<'_, '_>) {
        let message =
            format!("cannot hold one row of {key} = {length} tokens; raise it to {length} or more");
        if self.micro_batch_tokens < length {
            keys.wrong("micro_batch_tokens", self.micro_batch_tokens, message);
        }
    }
}
