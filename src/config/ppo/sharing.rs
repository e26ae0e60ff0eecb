//! Weights that the roles share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CriticFrom, Keys, Ppo};
use crate::config::check::Checker;
use crate::config::lora::LoraTable;
use crate::config::{Reward, Stage, Trainable};

/// The keys of sharing in `[ppo]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sharing {
    /// Weights that actor, critic, reference and reward model hold only once.
    pub share: Share,
    /// Number of lowest layers in the shared trunk; only with `share = "trunk"`.
    #[schemars(extend("x-default" = "required with `share = \"trunk\"`"))]
    pub trunk_layers: Option<usize>,
    /// Table of LoRA keys for the adapters of actor and critic; only with `share = "adapter"`.
    #[schemars(extend(
        "x-type" = "table",
        "x-default" = "the policy's own adapters, else the defaults"
    ))]
    pub lora: Option<LoraTable>,
}

/// Weights that the four roles share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// No weights are shared.
    #[default]
    None,
    /// The embedding and the lowest `trunk_layers` layers, which are frozen.
    Trunk,
    /// All weights of the policy, which are frozen; every role but the reference has adapters.
    Adapter,
}

impl Sharing {
    pub(super) fn check(&self, keys: &mut Keys<'_, '_>) {
        match (self.share, self.trunk_layers) {
            (Share::Trunk, None) => keys.missing(
                "trunk_layers",
                "share = \"trunk\" needs the number of frozen lowest layers, for example 24 of 30",
            ),
            (Share::Trunk, Some(layers)) => {
                keys.at_least("trunk_layers", layers, 1, "share = \"none\" has no trunk");
            }
            (_, Some(layers)) => {
                let message =
                    "has no effect without share = \"trunk\"; set that, or remove this key";
                keys.wrong("trunk_layers", layers, message);
            }
            (_, None) => {}
        }
        match (&self.lora, self.share) {
            (Some(lora), Share::Adapter) => lora.check(keys),
            (Some(_), _) => {
                let message =
                    "has no effect without share = \"adapter\"; set that, or remove this table";
                keys.wrong("lora", "{ … }", message);
            }
            (None, _) => {}
        }
    }
}

impl Ppo {
    /// Checks that a reward model of this run is trained on the weights that it shares.
    pub(in crate::config) fn check_reward_base(&self, reward: &Reward, checker: &mut Checker<'_>) {
        let mut keys = checker.table("ppo");
        match (self.sharing.share, self.sharing.trunk_layers) {
            (Share::Trunk, Some(layers)) if reward.trainable.freeze_layers < layers => {
                let message = format!(
                    "[reward] would train layers of the trunk; set reward.freeze_layers = {layers}"
                );
                keys.wrong("trunk_layers", layers, message);
            }
            (Share::Adapter, _)
                if reward.trainable.lora.is_none()
                    && self.critic.critic_from == Some(CriticFrom::RewardModel) =>
            {
                let message = "[reward] trains a whole model, but the critic has adapters and \
                               cannot start from it; add [reward.lora], or set critic_from = \
                               \"policy\"";
                keys.wrong("share", "\"adapter\"", message);
            }
            _ => {}
        }
    }

    /// Checks that a policy tuned by a stage of this run still shares weights with the reward
    /// model, unless that starts from it.
    pub(in crate::config) fn check_tuned_base(
        &self,
        (tuner, tuned): (Stage, &Trainable),
        reward: &Reward,
        checker: &mut Checker<'_>,
    ) {
        if reward.from == self.from || tuned.lora.is_some() {
            return;
        }
        let start = self.from.display();
        let mut keys = checker.table("ppo");
        match (self.sharing.share, self.sharing.trunk_layers) {
            (Share::Trunk, Some(layers)) if tuned.freeze_layers < layers => {
                let message = format!(
                    "[{tuner}] would train layers of the trunk that the reward model shares; set \
                     {tuner}.freeze_layers = {layers}, or reward.from = \"{start}\""
                );
                keys.wrong("trunk_layers", layers, message);
            }
            (Share::Adapter, _) if reward.trainable.lora.is_some() => {
                let message = format!(
                    "[{tuner}] would train the base of the adapters of [reward.lora]; add \
                     [{tuner}.lora], or set reward.from = \"{start}\""
                );
                keys.wrong("share", "\"adapter\"", message);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::resolve;

    fn sharing(overrides: &[&str]) -> Result<Sharing, String> {
        let config = resolve(overrides).map_err(|e| e.to_string())?;
        Ok(config.ppo.unwrap().sharing)
    }

    #[test]
    fn each_way_has_its_keys() {
        assert_eq!(sharing(&[]).unwrap(), Sharing::default());
        let frozen = "reward.freeze_layers=3";
        let trunk = sharing(&["ppo.share=trunk", "ppo.trunk_layers=3", frozen]).unwrap();
        assert_eq!((trunk.share, trunk.trunk_layers), (Share::Trunk, Some(3)));
        let adapter = sharing(&["ppo.share=adapter", "ppo.lora.r=4", "reward.lora={}"]).unwrap();
        assert_eq!(adapter.lora.unwrap().r, Some(4));
        for (overrides, says) in [
            (&["ppo.share=trunk"][..], "ppo.trunk_layers"),
            (
                &["ppo.share=trunk", "ppo.trunk_layers=0"],
                "ppo.trunk_layers",
            ),
            (&["ppo.trunk_layers=3"], "without share"),
            (
                &["ppo.share=trunk", "ppo.trunk_layers=3"],
                "reward.freeze_layers = 3",
            ),
            (&["ppo.share=adapter"], "[reward.lora]"),
            (&["ppo.lora={}"], "without share"),
            (&["ppo.share=adapter", "ppo.lora.r=0"], "r must be 1"),
            (&["ppo.share=all"], "ppo.share"),
        ] {
            let message = sharing(overrides).unwrap_err();
            assert!(message.contains(says), "{overrides:?}: {message}");
        }
    }

    #[test]
    fn a_policy_that_was_tuned_on_pairs_stands_where_the_reward_model_does() {
        let tuned = "runs/trial/dpo/final";
        let from = format!("ppo.from={tuned}");
        let trunk = [
            "ppo.share=trunk",
            "ppo.trunk_layers=2",
            "reward.freeze_layers=2",
        ];
        let adapter = ["ppo.share=adapter", "reward.lora={}"];
        let reward_from = format!("reward.from={tuned}");
        for (share, kept, says) in [
            (&trunk[..], "dpo.freeze_layers=2", "dpo.freeze_layers = 2"),
            (&adapter[..], "dpo.lora={}", "[dpo.lora]"),
        ] {
            let with = |more: &[&str]| sharing(&[share, &[&from], more].concat());
            let message = with(&[]).unwrap_err();
            assert!(
                message.contains(says) && message.contains(tuned),
                "{message}"
            );
            assert!(with(&[kept]).is_ok() && with(&[&reward_from]).is_ok());
            assert!(sharing(share).is_ok(), "the policy of [sft] has not moved");
        }
    }
}
