//! What the roles hold in common.

use serde::{Deserialize, Serialize};

use super::{CriticFrom, Keys, Ppo};
use crate::config::check::Checker;
use crate::config::lora::Lora;
use crate::config::{Reward, Stage, Trainable};

/// The keys of sharing in `[ppo]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sharing {
    /// What actor, critic, reference and reward model hold in common.
    pub share: Share,
    /// Layers of the trunk, counted from the lowest; with `share = "trunk"`.
    pub trunk_layers: Option<usize>,
    /// The adapters, with `share = "adapter"`; when unset those of the policy if it has some, else the defaults.
    pub lora: Option<Lora>,
}

/// What the four roles hold in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// Nothing: actor and critic own all their weights.
    #[default]
    None,
    /// The embedding and the lowest layers, frozen.
    Trunk,
    /// All weights of the policy, frozen: each role but the reference has adapters on them.
    Adapter,
}

impl Sharing {
    pub(super) fn check(&self, keys: &mut Keys<'_, '_>) {
        match (self.share, self.trunk_layers) {
            (Share::Trunk, None) => keys.missing(
                "trunk_layers",
                "share = \"trunk\" needs it: how many of the lowest layers are frozen and held once, for example 24 of 30",
            ),
            (Share::Trunk, Some(layers)) => {
                keys.at_least("trunk_layers", layers, 1, "share = \"none\" has no trunk");
            }
            (_, Some(layers)) => {
                let message = "is of no use without share = \"trunk\"; set that, or remove this key";
                keys.wrong("trunk_layers", layers, message);
            }
            (_, None) => {}
        }
        match (&self.lora, self.share) {
            (Some(lora), Share::Adapter) => lora.check(keys),
            (Some(_), _) => {
                let message =
                    "is of no use without share = \"adapter\"; set that, or remove this table";
                keys.wrong("lora", "{ … }", message);
            }
            (None, _) => {}
        }
    }
}

impl Ppo {
    /// A reward model that this run trains must stand on what it is to share.
    pub(in crate::config) fn check_ground_of(&self, reward: &Reward, checker: &mut Checker<'_>) {
        let mut keys = checker.table("ppo");
        match (self.sharing.share, self.sharing.trunk_layers) {
            (Share::Trunk, Some(layers)) if reward.trainable.freeze_layers < layers => {
                let message = format!(
                    "the reward model that [reward] trains would move the trunk; set reward.freeze_layers = {layers}"
                );
                keys.wrong("trunk_layers", layers, message);
            }
            (Share::Adapter, _)
                if reward.trainable.lora.is_none()
                    && self.critic.critic_from == Some(CriticFrom::RewardModel) =>
            {
                let message = "the reward model that [reward] trains would be a whole model, from which no adapted critic can start; add \
                               [reward.lora], or set critic_from = \"policy\"";
                keys.wrong("share", "\"adapter\"", message);
            }
            _ => {}
        }
    }

    /// A policy that a stage of this run has tuned on pairs must still stand on what the reward model stands on, unless that starts from it.
    pub(in crate::config) fn check_ground_after(
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
                    "the policy that [{tuner}] tunes would have moved the trunk that the reward model stands on; set {tuner}.freeze_layers = \
                     {layers}, or reward.from = \"{start}\""
                );
                keys.wrong("trunk_layers", layers, message);
            }
            (Share::Adapter, _) if reward.trainable.lora.is_some() => {
                let message = format!(
                    "the policy that [{tuner}] tunes would be another base than the one that [reward.lora] stands on; add [{tuner}.lora], or set \
                     reward.from = \"{start}\""
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
