//! Weights that the roles share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Keys;
use crate::config::lora::LoraTable;

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
        let trunk = sharing(&["ppo.share=trunk", "ppo.trunk_layers=3"]).unwrap();
        assert_eq!((trunk.share, trunk.trunk_layers), (Share::Trunk, Some(3)));
        let adapter = sharing(&["ppo.share=adapter", "ppo.lora.r=4"]).unwrap();
        assert_eq!(adapter.lora.unwrap().r, Some(4));
        for (overrides, says) in [
            (&["ppo.share=trunk"][..], "ppo.trunk_layers"),
            (
                &["ppo.share=trunk", "ppo.trunk_layers=0"],
                "ppo.trunk_layers",
            ),
            (&["ppo.trunk_layers=3"], "without share"),
            (&["ppo.lora={}"], "without share"),
            (&["ppo.share=adapter", "ppo.lora.r=0"], "r must be 1"),
            (&["ppo.share=all"], "ppo.share"),
        ] {
            let message = sharing(overrides).unwrap_err();
            assert!(message.contains(says), "{overrides:?}: {message}");
        }
    }
}
