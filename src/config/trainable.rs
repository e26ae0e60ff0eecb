//! Weights that a supervised stage trains: all, those above frozen layers, or adapters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::lora::LoraTable;

/// Message on keys that freeze weights beside a `lora` table.
const BESIDE_LORA: &str =
    "has no effect beside lora, which freezes all weights of the model; remove one of them";

/// The keys of the weights that a supervised stage trains.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trainable {
    /// Number of lowest layers that are frozen, the embedding with them; 0 freezes none.
    ///
    /// Frozen layers form a trunk that `[ppo]` can share among its roles (`ppo.share`).
    pub freeze_layers: usize,
    /// Whether the embedding is frozen.
    ///
    /// `freeze_layers` above 0 freezes it too.
    pub freeze_embeddings: bool,
    /// Table of LoRA keys: train adapters on frozen weights, and the head in `[reward]` and
    /// `[judge]`.
    #[schemars(extend("x-type" = "table"))]
    pub lora: Option<LoraTable>,
}

impl Trainable {
    pub(super) fn check(&self, keys: &mut Keys<'_, '_>) {
        let Some(lora) = &self.lora else { return };
        lora.check(keys);
        if self.freeze_layers > 0 {
            keys.wrong("freeze_layers", self.freeze_layers, BESIDE_LORA);
        }
        if self.freeze_embeddings {
            keys.wrong("freeze_embeddings", true, BESIDE_LORA);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{refused, resolve};

    #[test]
    fn what_freezes_weights_is_refused_beside_adapters() {
        for stage in ["sft", "dpo", "orpo", "reward", "judge"] {
            let lora = format!("{stage}.lora={{}}");
            for key in ["freeze_layers=1", "freeze_embeddings=true"] {
                let frozen = format!("{stage}.{key}");
                assert!(resolve(&[&frozen]).is_ok(), "{frozen}");
                let name = frozen.split('=').next().unwrap();
                refused(&[&lora, &frozen], &[name, "beside lora"]);
            }
        }
    }
}
