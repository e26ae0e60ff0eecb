//! The keys of `[ppo]` that shape its update: the mean over token losses, the terms of the loss,
//! and the limits at which an iteration's updates end early or are undone.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AdvantageEstimator, Keys, KlControllerKind, Ppo, Ptx};
use crate::config::words::word;
use crate::rlhf::{KlEstimator, LossAggregation};

/// The keys that shape the update in `[ppo]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PpoUpdate {
    /// Mean that averages policy loss, entropy bonus and KL loss over a minibatch.
    ///
    /// The value loss is always a mean over tokens, as in TRL and OpenRLHF (verl lets it follow the
    /// policy's).
    #[schemars(extend(
        "x-default" = "`constant` with `dr_grpo`, `rloo` and `remax`, else `token`"
    ))]
    pub loss_aggregation: Option<LossAggregation>,
    /// Bound c on the loss of a token with negative advantage A, which is at most −c·A (dual clip,
    /// Ye et al. 2020); unset does not bound it.
    ///
    /// Must be above 1. TRL calls it `delta`, verl `clip_ratio_c` (there 3).
    pub dual_clip: Option<f64>,
    /// Weight of the entropy bonus in the policy's loss.
    pub entropy_coef: f64,
    /// Whether the KL to the reference is part of the rewards or of the loss.
    ///
    /// Refused if `kl_coef` is 0.
    #[schemars(extend("x-default" = "`loss` with `grpo` and `dr_grpo`, else `reward`"))]
    pub kl_in: Option<KlIn>,
    /// Limit on `policy/approx_kl`: an iteration's updates end before the first minibatch that
    /// exceeds it; unset never ends them early.
    pub target_kl: Option<f64>,
    /// Undo an iteration whose `policy/last_approx_kl` exceeds `target_kl` times this factor; unset
    /// undoes none.
    ///
    /// Actor, critic and their optimizers return to the start of the iteration; the KL controller
    /// and the running statistics of scores are not undone. The copy takes three times the memory
    /// of the trained weights. Must be 1 or larger.
    pub rollback_kl_factor: Option<f64>,
    /// Pretraining text that is mixed in.
    #[serde(flatten)]
    pub ptx: Ptx,
}

/// Whether the KL to the reference is part of the rewards or of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KlIn {
    /// The KL is subtracted from each token's reward, as in PPO.
    Reward,
    /// The KL is a term of the loss, as in GRPO.
    Loss,
}

impl fmt::Display for KlIn {
    /// The word of the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&word(self))
    }
}

impl PpoUpdate {
    /// Fills unset keys.
    pub(super) fn fill(&mut self, mini_batch_size: usize) {
        self.ptx.fill(mini_batch_size);
    }

    /// The `policy/last_approx_kl` beyond which an iteration is undone, if there is a limit.
    pub fn rollback_kl(&self) -> Option<f64> {
        Some(self.target_kl? * self.rollback_kl_factor?)
    }

    /// Default of `loss_aggregation`: that of the estimator's source, but TRL's for `grpo`.
    ///
    /// - Dr. GRPO (Liu et al. 2025, section 3.2) divides the sum by a constant instead of the
    ///   length of each completion.
    /// - RLOO (Ahmadian et al. 2024, eq. 6 and 7) and ReMax (Li et al. 2024, eq. 4) treat a
    ///   completion as one action: the gradient is the advantage times Σ ∇ log π over its tokens. A
    ///   constant divisor keeps that up to a scale; without it losses would grow with
    ///   `max_new_tokens`, and `max_grad_norm` would clip every step.
    /// - PPO and REINFORCE++ (Hu 2025) treat tokens as actions, and take the mean over all of them.
    /// - GRPO (Shao et al. 2024, eq. 3) takes the mean over each sequence's tokens first
    ///   (`sequence`). The default here is `token`, as in TRL and DAPO (Yu et al. 2025, section
    ///   3.3): in the paper's mean a token of a long completion counts for less, so that long wrong
    ///   answers are hardly discouraged.
    pub(super) fn usual_aggregation(estimator: AdvantageEstimator) -> LossAggregation {
        match estimator {
            AdvantageEstimator::DrGrpo | AdvantageEstimator::Rloo | AdvantageEstimator::Remax => {
                LossAggregation::Constant
            }
            AdvantageEstimator::Gae
            | AdvantageEstimator::Grpo
            | AdvantageEstimator::ReinforcePlusPlus => LossAggregation::Token,
        }
    }

    /// Default of `kl_in`: that of the estimator's paper.
    pub(super) fn usual_place(estimator: AdvantageEstimator) -> KlIn {
        match estimator {
            AdvantageEstimator::Grpo | AdvantageEstimator::DrGrpo => KlIn::Loss,
            _ => KlIn::Reward,
        }
    }

    /// Default of `kl_estimator`: the usual one for rewards and for losses.
    pub(super) fn usual_estimator(kl_in: KlIn) -> KlEstimator {
        match kl_in {
            KlIn::Reward => KlEstimator::K1,
            KlIn::Loss => KlEstimator::K3,
        }
    }

    pub(super) fn check(&self, ppo: &Ppo, keys: &mut Keys<'_, '_>) {
        let free = "3.0 is usual; remove it for no bound";
        keys.above("dual_clip", self.dual_clip.unwrap_or(2.0), 1.0, free);
        let mend = "0.01 is large, 0 has no bonus";
        keys.not_negative("entropy_coef", self.entropy_coef, mend);
        self.check_kl(ppo, keys);
        self.check_limits(ppo, keys);
        self.ptx.check(keys);
        if self.ptx.is_on() {
            let length = self.ptx.ptx_length;
            ppo.training.check_row("ptx_length", length, keys);
        }
    }

    fn check_kl(&self, ppo: &Ppo, keys: &mut Keys<'_, '_>) {
        if ppo.objective.kl_coef == 0.0 {
            return Self::refuse_kl_keys(ppo, keys);
        }
        if ppo.kl_in() == KlIn::Loss && ppo.kl_estimator() == KlEstimator::K1 {
            let message = "has no effect as a loss, because its gradient is zero in expectation; \
                           set \"k3\" (GRPO's) or \"k2\", or kl_in = \"reward\"";
            keys.wrong("kl_estimator", "\"k1\"", message);
        }
        Self::check_controller(ppo, keys);
    }

    /// The adaptive controller changes the weight by a factor of up to 1 ± 0.2 · sequences /
    /// horizon per iteration. A factor of 0 must not be possible: the weight would stay 0.
    fn check_controller(ppo: &Ppo, keys: &mut Keys<'_, '_>) {
        let (horizon, batch) = (ppo.objective.kl_horizon, ppo.training.batch_size);
        let least = 0.2 * batch as f64;
        let adaptive = ppo.objective.kl_controller == KlControllerKind::Adaptive;
        if adaptive && horizon > 0.0 && horizon <= least {
            let message = format!(
                "lets one iteration of batch_size = {batch} sequences reduce the weight of the KL \
                 to 0, where it stays; set it above {least}, 10000 is usual"
            );
            keys.wrong("kl_horizon", horizon, message);
        }
    }

    /// Reports keys of the KL when its weight is 0. Defaults pass, because the file in a run folder
    /// writes them out.
    fn refuse_kl_keys(ppo: &Ppo, keys: &mut Keys<'_, '_>) {
        let message = "has no effect while kl_coef = 0, which leaves the KL out; raise that, or \
                       remove this key";
        let (place, estimator) = (ppo.kl_in(), ppo.kl_estimator());
        if place != Self::usual_place(ppo.objective.advantage_estimator) {
            keys.wrong("kl_in", format!("\"{place}\""), message);
        }
        if estimator != Self::usual_estimator(place) {
            keys.wrong("kl_estimator", format!("\"{estimator}\""), message);
        }
    }

    fn check_limits(&self, ppo: &Ppo, keys: &mut Keys<'_, '_>) {
        let mend = "0.02 is usual; remove it to never end an iteration early";
        keys.above("target_kl", self.target_kl.unwrap_or(1.0), 0.0, mend);
        let minibatches = ppo.num_ppo_epochs.saturating_mul(ppo.num_mini_batches);
        match (self.target_kl, self.rollback_kl_factor) {
            (None, Some(factor)) => keys.wrong(
                "rollback_kl_factor",
                factor,
                "multiplies target_kl, which is not set; set target_kl, or remove this key",
            ),
            (Some(_), Some(factor)) if !(factor >= 1.0 && factor.is_finite()) => keys.wrong(
                "rollback_kl_factor",
                factor,
                "must be 1 or larger; 2 is usual",
            ),
            (Some(target), None) if minibatches == 1 => keys.wrong(
                "target_kl",
                target,
                "has no effect, because an iteration has a single minibatch; raise num_ppo_epochs \
                 or num_mini_batches, set rollback_kl_factor, or remove this key",
            ),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{refused, resolve};
    use crate::config::{KlIn, Ppo};
    use crate::rlhf::{KlEstimator, LossAggregation};

    fn ppo(overrides: &[&str]) -> Ppo {
        resolve(overrides).unwrap().ppo.unwrap()
    }

    #[test]
    fn the_estimator_follows_the_place_of_the_kl() {
        assert_eq!(ppo(&[]).objective.kl_estimator, Some(KlEstimator::K1));
        assert_eq!(
            ppo(&["ppo.kl_in=loss"]).objective.kl_estimator,
            Some(KlEstimator::K3)
        );
        let grpo = [
            "ppo.advantage_estimator=grpo",
            "ppo.num_samples_per_prompt=4",
        ];
        assert_eq!(ppo(&grpo).update.kl_in, Some(KlIn::Loss));
        assert_eq!(ppo(&grpo).objective.kl_estimator, Some(KlEstimator::K3));
        let chosen = ppo(&["ppo.kl_in=loss", "ppo.kl_estimator=k2"]);
        assert_eq!(chosen.objective.kl_estimator, Some(KlEstimator::K2));
        refused(
            &["ppo.kl_in=loss", "ppo.kl_estimator=k1"],
            &["ppo.kl_estimator", "zero in expectation", "k3"],
        );
    }

    #[test]
    fn losses_are_summed_as_the_estimators_paper_does() {
        use LossAggregation::{Constant, Sequence, Token};
        let found = |estimator: &str, set: &[&str]| {
            let estimator = format!("ppo.advantage_estimator={estimator}");
            let sets = [&[estimator.as_str(), "ppo.num_samples_per_prompt=4"], set].concat();
            ppo(&sets).update.loss_aggregation
        };
        for (estimator, expected) in [
            ("gae", Token),
            ("grpo", Token),
            ("dr_grpo", Constant),
            ("rloo", Constant),
            ("reinforce_plus_plus", Token),
            ("remax", Constant),
        ] {
            assert_eq!(found(estimator, &[]), Some(expected), "{estimator}");
            let set = ["ppo.loss_aggregation=sequence"];
            assert_eq!(found(estimator, &set), Some(Sequence), "{estimator}");
        }
    }

    #[test]
    fn a_kl_of_no_weight_has_no_place_and_no_estimator() {
        let free = "ppo.kl_coef=0";
        let words = "has no effect while kl_coef = 0";
        for (set, key) in [
            ("ppo.kl_estimator=k3", "ppo.kl_estimator = \"k3\""),
            ("ppo.kl_estimator=k2", "ppo.kl_estimator = \"k2\""),
            ("ppo.kl_in=loss", "ppo.kl_in = \"loss\""),
        ] {
            refused(&[free, set], &[key, words]);
        }
        let grpo = [
            free,
            "ppo.advantage_estimator=grpo",
            "ppo.num_samples_per_prompt=4",
        ];
        refused(
            &[&grpo[..], &["ppo.kl_in=reward"]].concat(),
            &["ppo.kl_in = \"reward\"", words],
        );
        // A key set to its default value gives no message.
        for usual in [
            &[free][..],
            &[free, "ppo.kl_estimator=k1", "ppo.kl_in=reward"],
            &grpo,
        ] {
            assert_eq!(ppo(usual).objective.kl_coef, 0.0);
        }
    }

    #[test]
    fn a_horizon_over_which_the_weight_of_the_kl_is_lost_is_refused() {
        let adaptive = ["ppo.kl_controller=adaptive", "ppo.batch_size=100"];
        let with = |horizon: &'static str| [adaptive[0], adaptive[1], horizon];
        refused(
            &with("ppo.kl_horizon=20.0"),
            &["ppo.kl_horizon = 20", "batch_size = 100", "above 20"],
        );
        ppo(&with("ppo.kl_horizon=20.5"));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        refused(&["ppo.dual_clip=1.0"], &["ppo.dual_clip", "larger than 1"]);
        refused(
            &["ppo.entropy_coef=-0.1"],
            &["ppo.entropy_coef", "zero or larger"],
        );
        refused(&["ppo.target_kl=0.0"], &["ppo.target_kl", "larger than 0"]);
        let factor = ["ppo.target_kl=0.1", "ppo.rollback_kl_factor=0.5"];
        refused(&factor, &["ppo.rollback_kl_factor", "1 or larger"]);
        let words = ["ppo.loss_aggregation", "token", "sequence", "constant"];
        refused(&["ppo.loss_aggregation=mean"], &words);
    }

    #[test]
    fn limits_that_could_not_act_are_refused() {
        let alone = ["ppo.rollback_kl_factor=2.0"];
        refused(&alone, &["ppo.rollback_kl_factor", "target_kl", "not set"]);
        let single = ["ppo.target_kl=0.1", "ppo.num_ppo_epochs=1"];
        refused(
            &single,
            &["ppo.target_kl", "single minibatch", "num_ppo_epochs"],
        );
        let measured = [&single[..], &["ppo.rollback_kl_factor=2.0"]].concat();
        assert_eq!(ppo(&measured).update.rollback_kl(), Some(0.2));
        assert_eq!(ppo(&["ppo.target_kl=0.1"]).update.rollback_kl(), None);
    }

    #[test]
    fn keys_of_other_trainers_lead_to_ours() {
        let pairs = [
            ("clip_ratio_c", "dual_clip"),
            ("loss_agg_mode", "loss_aggregation"),
            ("use_kl_loss", "kl_in"),
            ("entropy_coeff", "entropy_coef"),
        ];
        for (theirs, ours) in pairs {
            refused(
                &[&format!("ppo.{theirs}=1")],
                &[&format!("did you mean `{ours}`")],
            );
        }
    }
}
