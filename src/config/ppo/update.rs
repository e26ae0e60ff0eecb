//! The keys of `[ppo]` that shape its update: how token losses are averaged, what is added to them, and when an iteration's
//! updates end early or are taken back.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AdvantageEstimator, Keys, KlControllerKind, Ppo, Ptx};
use crate::rlhf::{KlEstimator, LossAggregation};

/// Keys of the update.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PpoUpdate {
    /// The mean that policy loss, entropy bonus and KL loss take over a minibatch. When unset: `constant` with the estimators whose
    /// papers sum a completion's tokens (`dr_grpo`, `rloo`, `remax`), else `token`. Filled once read. The value loss is a mean over
    /// tokens in any case, as TRL's and OpenRLHF's is (verl lets it follow the policy's).
    pub loss_aggregation: Option<LossAggregation>,
    /// c: the loss of a token whose advantage A is negative is at most −c·A, however far its ratio has grown (Ye et al. 2020; TRL's
    /// `delta`, verl's `clip_ratio_c`, there 3). Above 1; unset bounds nothing.
    pub dual_clip: Option<f64>,
    /// Weight of the policy's entropy, which the loss rewards; 0 does not.
    pub entropy_coef: f64,
    /// Where the KL to the reference enters, with `kl_coef` as its weight. When unset: the loss with `grpo` and `dr_grpo`, whose
    /// advantages are of scores alone (Shao et al. 2024, eq. 3), else the reward. Filled once read. Another place is refused where
    /// `kl_coef` is 0.
    pub kl_in: Option<KlIn>,
    /// An iteration's updates end before the first minibatch whose `policy/approx_kl` exceeds this: it takes no step, neither
    /// actor's nor critic's. Unset never ends them early.
    pub target_kl: Option<f64>,
    /// An iteration whose `policy/last_approx_kl` exceeds `target_kl` × this is taken back: actor, critic and their optimizers stand
    /// again where it began, and the KL controller and the scores' normaliser keep what they have seen. The copy to go back to
    /// takes the memory of the trained weights three times over. Unset takes nothing back.
    pub rollback_kl_factor: Option<f64>,
    /// Pretraining text that is mixed in.
    #[serde(flatten)]
    pub ptx: Ptx,
}

/// Where the KL to the reference enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlIn {
    /// Each token's reward: PPO's.
    Reward,
    /// The loss, by the log-probs of the policy as it moves: GRPO's.
    Loss,
}

impl fmt::Display for KlIn {
    /// The word of the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reward => "reward",
            Self::Loss => "loss",
        })
    }
}

impl PpoUpdate {
    /// Writes down the values that unset keys take.
    pub(super) fn fill(&mut self, mini_batch_size: usize) {
        self.ptx.fill(mini_batch_size);
    }

    /// The `policy/last_approx_kl` beyond which an iteration is taken back, if any is.
    pub fn rollback_kl(&self) -> Option<f64> {
        Some(self.target_kl? * self.rollback_kl_factor?)
    }

    /// Aggregation that an unset `loss_aggregation` stands for: the estimator's source, or TRL's default where that differs (`grpo`).
    ///
    /// - Dr. GRPO (Liu et al. 2025, section 3.2) divides the sum by a constant, in place of the length of each completion.
    /// - RLOO (Ahmadian et al. 2024, eq. 6 and 7) and ReMax (Li et al. 2024, eq. 4) take a completion as one action: the gradient is the
    ///   advantage times Σ ∇ log π over its tokens. A constant divisor keeps that up to a scale; without it the losses would grow
    ///   with the length allowed, and `max_grad_norm` would cut them all.
    /// - PPO and REINFORCE++ (Hu 2025) take tokens as actions, and the mean over all of them.
    /// - GRPO (Shao et al. 2024, eq. 3) takes the mean over each sequence's tokens first (`sequence`). On purpose it is `token` here:
    ///   in the paper's mean a token of a long completion counts for less, so that long wrong answers are hardly discouraged (Yu et al.
    ///   2025, "DAPO", section 3.3, whose mean this is); TRL's default is the same.
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

    /// The place that an unset `kl_in` stands for: where the estimator's source has it.
    pub(super) fn usual_place(estimator: AdvantageEstimator) -> KlIn {
        match estimator {
            AdvantageEstimator::Grpo | AdvantageEstimator::DrGrpo => KlIn::Loss,
            _ => KlIn::Reward,
        }
    }

    /// The estimator that an unset `kl_estimator` stands for: what each place is usually given.
    pub(super) fn usual_estimator(kl_in: KlIn) -> KlEstimator {
        match kl_in {
            KlIn::Reward => KlEstimator::K1,
            KlIn::Loss => KlEstimator::K3,
        }
    }

    pub(super) fn check(&self, ppo: &Ppo, keys: &mut Keys<'_, '_>) {
        let free = "3.0 is usual; remove it to bound nothing";
        keys.above("dual_clip", self.dual_clip.unwrap_or(2.0), 1.0, free);
        let mend = "0.01 is much, 0 rewards no entropy";
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
            let message = "pulls towards nothing as a loss: its gradient is zero in expectation; set \"k3\" (GRPO's) or \"k2\", or \
                           kl_in = \"reward\"";
            keys.wrong("kl_estimator", "\"k1\"", message);
        }
        Self::check_controller(ppo, keys);
    }

    /// The adaptive controller changes the weight by a share of up to 0.2 · sequences / horizon an iteration. One that can take all of it
    /// would leave 0, which it multiplies from then on.
    fn check_controller(ppo: &Ppo, keys: &mut Keys<'_, '_>) {
        let (horizon, batch) = (ppo.objective.kl_horizon, ppo.training.batch_size);
        let least = 0.2 * batch as f64;
        let adaptive = ppo.objective.kl_controller == KlControllerKind::Adaptive;
        if adaptive && horizon > 0.0 && horizon <= least {
            let message = format!(
                "lets one iteration of batch_size = {batch} sequences take the weight of the KL to 0, where it stays; set it above {least}, \
                 10000 is usual"
            );
            keys.wrong("kl_horizon", horizon, message);
        }
    }

    /// A KL of weight 0 is the same in any place and by any estimator. Defaults pass, for the file in a run folder writes them out.
    fn refuse_kl_keys(ppo: &Ppo, keys: &mut Keys<'_, '_>) {
        let message = "is of no use while kl_coef = 0, which leaves the KL out; raise that, or remove this key";
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
                "multiplies target_kl, which is not set; set that, or remove this key",
            ),
            (Some(_), Some(factor)) if !(factor >= 1.0 && factor.is_finite()) => keys.wrong(
                "rollback_kl_factor",
                factor,
                "must be 1 or larger; 2 is usual",
            ),
            (Some(target), None) if minibatches == 1 => keys.wrong(
                "target_kl",
                target,
                "an iteration has a single minibatch, after which there is nothing to stop; raise num_ppo_epochs or \
                 num_mini_batches, set rollback_kl_factor, or remove this key",
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
        let words = "is of no use while kl_coef = 0";
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
        // What an unset key stands for says nothing, typed or filled in.
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
