//! What PPO maximises: which estimator turns rewards into advantages, the weight of the KL, and how far a step may go.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Keys;
use crate::rlhf::KlEstimator;

/// The keys of the objective in `[ppo]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// What an outcome is held against. Only `gae` has a critic.
    pub advantage_estimator: AdvantageEstimator,
    /// Discount of later rewards. Estimators that credit whole sequences have none and refuse another value than 1.
    pub gamma: f64,
    /// Whether token rewards are scaled to unit variance over the batch. Refused by estimators that credit whole sequences.
    pub whiten_rewards: bool,
    /// Whether advantages are shifted and scaled to mean 0 and variance 1 over the batch. When unset: with `gae` and
    /// `reinforce_plus_plus` (which always does), as in their sources. Always filled once read.
    pub whiten_advantages: Option<bool>,
    /// Weight of the KL to the reference, in the reward or in the loss; where the controller is adaptive, its start. Where it is 0 iterations
    /// do not score the reference and `objective/kl` is not written; evaluations still measure `eval/kl`.
    pub kl_coef: f64,
    /// Estimator of that KL. When unset: k1 in the reward, k3 in the loss. Always filled once read. Another is refused where `kl_coef`
    /// is 0.
    pub kl_estimator: Option<KlEstimator>,
    /// Whether the weight of the KL stays or is steered.
    pub kl_controller: KlControllerKind,
    /// The KL that the adaptive controller steers to: nats a sequence.
    pub kl_target: f64,
    /// Sequences over which the adaptive controller acts.
    pub kl_horizon: f64,
    /// The probability ratio is clipped at 1 − this (and at 1 + this, if `cliprange_high` is
    /// unset).
    pub cliprange: f64,
    /// The probability ratio is clipped at 1 + this.
    pub cliprange_high: Option<f64>,
}

/// What an outcome is held against to tell how good it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvantageEstimator {
    /// A critic's values (Schulman et al. 2016).
    Gae,
    /// Mean and deviation of the prompt's samples (Shao et al. 2024).
    Grpo,
    /// Their mean (Liu et al. 2025), with `loss_aggregation = "constant"` unless that is set.
    DrGrpo,
    /// The mean of the prompt's other samples (Ahmadian et al. 2024).
    Rloo,
    /// Mean and deviation of the whole batch (Hu 2025).
    ReinforcePlusPlus,
    /// The score of the prompt's greedy completion (Li et al. 2024).
    Remax,
}

/// How the weight of the KL goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlControllerKind {
    /// It stays `kl_coef`.
    Fixed,
    /// It rises while the KL is above `kl_target` and falls while it is below (Ziegler et al. 2019, section 2.2).
    Adaptive,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            advantage_estimator: AdvantageEstimator::Gae,
            gamma: 1.0,
            whiten_rewards: false,
            whiten_advantages: None,
            kl_coef: 0.05,
            kl_estimator: None,
            kl_controller: KlControllerKind::Fixed,
            kl_target: 6.0,
            kl_horizon: 10_000.0,
            cliprange: 0.2,
            cliprange_high: None,
        }
    }
}

impl fmt::Display for AdvantageEstimator {
    /// The word of the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gae => "gae",
            Self::Grpo => "grpo",
            Self::DrGrpo => "dr_grpo",
            Self::Rloo => "rloo",
            Self::ReinforcePlusPlus => "reinforce_plus_plus",
            Self::Remax => "remax",
        })
    }
}

impl AdvantageEstimator {
    /// Whether it holds the samples of a prompt against each other, and so needs several.
    pub fn compares_samples(self) -> bool {
        matches!(self, Self::Grpo | Self::DrGrpo | Self::Rloo)
    }

    /// Whether all tokens of a sequence get the same advantage, rather than each what follows it.
    pub fn credits_sequences(self) -> bool {
        self.compares_samples() || self == Self::Remax
    }

    fn whitens_by_default(self) -> bool {
        matches!(self, Self::Gae | Self::ReinforcePlusPlus)
    }
}

impl Objective {
    /// The ratio is clipped at 1 + this.
    pub fn cliprange_high(&self) -> f64 {
        self.cliprange_high.unwrap_or(self.cliprange)
    }

    /// Whether advantages are whitened over the batch.
    pub fn whiten_advantages(&self) -> bool {
        let default = self.advantage_estimator.whitens_by_default();
        self.whiten_advantages.unwrap_or(default)
    }

    pub(super) fn fill(&mut self) {
        self.cliprange_high = Some(self.cliprange_high());
        self.whiten_advantages = Some(self.whiten_advantages());
    }

    pub(super) fn check(&self, keys: &mut Keys<'_, '_>) {
        self.check_clip(keys);
        self.check_kl(keys);
        keys.between("gamma", self.gamma, 0.0, 1.0, "1.0 is usual");
        self.check_estimator(keys);
    }

    fn check_clip(&self, keys: &mut Keys<'_, '_>) {
        keys.above("cliprange", self.cliprange, 0.0, "0.2 is usual");
        if self.cliprange >= 1.0 {
            keys.wrong(
                "cliprange",
                self.cliprange,
                "must be below 1, for a ratio is positive; 0.2 is usual",
            );
        }
        // Values copied from another key are blamed there.
        if self.cliprange_high() != self.cliprange {
            keys.above("cliprange_high", self.cliprange_high(), 0.0, "0.2 is usual");
        }
    }

    fn check_kl(&self, keys: &mut Keys<'_, '_>) {
        keys.not_negative(
            "kl_coef",
            self.kl_coef,
            "0.05 is usual, 0 leaves the policy free of the reference",
        );
        keys.above("kl_target", self.kl_target, 0.0, "6.0 is usual");
        keys.above("kl_horizon", self.kl_horizon, 0.0, "10000 is usual");
        if self.kl_controller == KlControllerKind::Adaptive {
            if self.kl_coef == 0.0 {
                let message = "would stay 0 whatever the KL, for the adaptive controller multiplies it; set it above 0 (0.05 is \
                               usual), or remove kl_controller";
                keys.wrong("kl_coef", self.kl_coef, message);
            }
            return;
        }
        let usual = Self::default();
        for (key, own, usual) in [
            ("kl_target", self.kl_target, usual.kl_target),
            ("kl_horizon", self.kl_horizon, usual.kl_horizon),
        ] {
            if own != usual {
                let message = "is of no use while kl_controller is \"fixed\"; set that to \"adaptive\", or remove this key";
                keys.wrong(key, own, message);
            }
        }
    }

    /// Keys that the estimator makes no use of.
    fn check_estimator(&self, keys: &mut Keys<'_, '_>) {
        let estimator = self.advantage_estimator;
        let whole = format!(
            "is of no use with advantage_estimator = \"{estimator}\", which credits whole sequences; remove this key"
        );
        if estimator.credits_sequences() && self.gamma != 1.0 {
            keys.wrong("gamma", self.gamma, whole.as_str());
        }
        if estimator.credits_sequences() && self.whiten_rewards {
            keys.wrong("whiten_rewards", true, whole);
        }
        if estimator == AdvantageEstimator::ReinforcePlusPlus && !self.whiten_advantages() {
            let message = "cannot be: whitening over the batch is what reinforce_plus_plus has in place of a critic; remove this key, \
                           or choose another advantage_estimator";
            keys.wrong("whiten_advantages", false, message);
        }
    }
}
