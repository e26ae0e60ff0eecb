//! The objective of PPO: the estimator of advantages, the weight of the KL, and the clipping.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Keys;
use crate::config::words::word;
use crate::rlhf::KlEstimator;

/// The keys of the objective in `[ppo]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PpoObjective {
    /// Estimator of the advantages; only `gae` trains a critic.
    pub advantage_estimator: AdvantageEstimator,
    /// Discount factor of later rewards, between 0 and 1.
    ///
    /// Estimators that credit whole sequences have none and refuse values other than 1.
    pub gamma: f64,
    /// Whether to scale token rewards to unit variance over the batch.
    ///
    /// Refused by estimators that credit whole sequences.
    pub whiten_rewards: bool,
    /// Whether to whiten advantages to mean 0 and variance 1 over the batch.
    ///
    /// `reinforce_plus_plus` always does.
    #[schemars(extend("x-default" = "true with `gae` and `reinforce_plus_plus`, else false"))]
    pub whiten_advantages: Option<bool>,
    /// Weight of the KL to the reference, in the rewards or in the loss (`kl_in`).
    ///
    /// With `kl_controller = "adaptive"` it is the initial weight. With 0, iterations do not score
    /// the reference and `objective/kl` is not written; evaluations still measure `eval/kl`.
    pub kl_coef: f64,
    /// Estimator of the per-token KL to the reference, by Schulman's names.
    ///
    /// Refused if `kl_coef` is 0.
    #[schemars(extend("x-default" = "`k1` in the reward, `k3` in the loss"))]
    pub kl_estimator: Option<KlEstimator>,
    /// Whether the weight of the KL is fixed or adapted.
    pub kl_controller: KlControllerKind,
    /// KL that the adaptive controller steers to, in nats per sequence.
    pub kl_target: f64,
    /// Number of sequences over which the adaptive controller acts.
    pub kl_horizon: f64,
    /// Clip range ε of the probability ratio: it is clipped at 1 − ε and, without
    /// `cliprange_high`, at 1 + ε.
    ///
    /// Must be below 1.
    pub cliprange: f64,
    /// Upper clip range: the probability ratio is clipped at 1 + this value (DAPO's clip-higher).
    #[schemars(extend("x-default" = "`cliprange`"))]
    pub cliprange_high: Option<f64>,
}

/// Estimator of the advantages. Each compares a completion's score with another baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdvantageEstimator {
    /// The values of a critic (Schulman et al. 2016).
    Gae,
    /// Mean and standard deviation of the prompt's samples (Shao et al. 2024).
    Grpo,
    /// Mean of the prompt's samples (Liu et al. 2025).
    DrGrpo,
    /// Mean of the prompt's other samples (Ahmadian et al. 2024).
    Rloo,
    /// Mean and standard deviation of the whole batch (Hu 2025).
    ReinforcePlusPlus,
    /// Score of the prompt's greedy completion (Li et al. 2024).
    Remax,
}

/// Whether the weight of the KL is fixed or adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KlControllerKind {
    /// The weight stays `kl_coef`.
    Fixed,
    /// The weight rises while the KL is above `kl_target` and falls while it is below (Ziegler et
    /// al. 2019, section 2.2).
    Adaptive,
}

impl Default for PpoObjective {
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
        f.pad(&word(self))
    }
}

impl AdvantageEstimator {
    /// Whether the estimator compares the samples of a prompt, and needs several.
    pub fn compares_samples(self) -> bool {
        matches!(self, Self::Grpo | Self::DrGrpo | Self::Rloo)
    }

    /// Whether all tokens of a sequence have the same advantage.
    pub fn credits_sequences(self) -> bool {
        self.compares_samples() || self == Self::Remax
    }

    fn whitens_by_default(self) -> bool {
        matches!(self, Self::Gae | Self::ReinforcePlusPlus)
    }
}

impl PpoObjective {
    /// Upper clip range: the ratio is clipped at 1 + this value.
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
                "must be below 1, because a ratio is positive; 0.2 is usual",
            );
        }
        // A value copied from another key is reported there.
        if self.cliprange_high() != self.cliprange {
            keys.above("cliprange_high", self.cliprange_high(), 0.0, "0.2 is usual");
        }
    }

    fn check_kl(&self, keys: &mut Keys<'_, '_>) {
        keys.not_negative(
            "kl_coef",
            self.kl_coef,
            "0.05 is usual, 0 has no KL penalty",
        );
        keys.above("kl_target", self.kl_target, 0.0, "6.0 is usual");
        keys.above("kl_horizon", self.kl_horizon, 0.0, "10000 is usual");
        if self.kl_controller == KlControllerKind::Adaptive {
            if self.kl_coef == 0.0 {
                let message = "would stay 0, because the adaptive controller multiplies it; set it \
                               above 0 (0.05 is usual), or remove kl_controller";
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
                let message = "has no effect while kl_controller is \"fixed\"; set that to \
                               \"adaptive\", or remove this key";
                keys.wrong(key, own, message);
            }
        }
    }

    /// Reports keys that have no effect with the estimator.
    fn check_estimator(&self, keys: &mut Keys<'_, '_>) {
        let estimator = self.advantage_estimator;
        let whole = format!(
            "has no effect with advantage_estimator = \"{estimator}\", which credits whole \
             sequences; remove this key"
        );
        if estimator.credits_sequences() && self.gamma != 1.0 {
            keys.wrong("gamma", self.gamma, whole.as_str());
        }
        if estimator.credits_sequences() && self.whiten_rewards {
            keys.wrong("whiten_rewards", true, whole);
        }
        if estimator == AdvantageEstimator::ReinforcePlusPlus && !self.whiten_advantages() {
            let message = "must be true with advantage_estimator = \"reinforce_plus_plus\", whose \
                           baseline it is; remove this key, or choose another estimator";
            keys.wrong("whiten_advantages", false, message);
        }
    }
}
