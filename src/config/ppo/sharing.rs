//! What the roles hold in common.

use serde::{Deserialize, Serialize};

use super::{CriticFrom, Keys, Ppo};
use crate::config::Reward;
use crate::config::check::Checker;
use crate::config::lora::Lora;

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
            (Share::Trunk, Some(layers)) if reward.freeze_layers < layers => {
                let message = format!(
                    "the reward model that [reward] trains would move the trunk; set reward.freeze_layers = {layers}"
                );
                keys.wrong("trunk_layers", layers, message);
            }
            (Share::Adapter, _)
                if reward.lora.is_none()
                    && self.critic.critic_from == Some(CriticFrom::RewardModel) =>
            {
                let message = "the reward model that [reward] trains would be a whole model, from which no adapted critic can start; add \
                               [reward.lora], or set critic_from = \"policy\"";
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
        assert_eq!(adapter.lora.unwrap().r, 4);
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
}
