//! Which of a model's weights a stage trains: all of them, those above some frozen layers, or adapters on them.

use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::lora::Lora;

/// What is said of keys that freeze weights beside a `lora` table.
const BESIDE_LORA: &str = "is of no use beside lora, which leaves all weights of the model as they are; remove one of the two";

/// The keys of `[sft]`, `[dpo]`, `[reward]` and `[judge]` that say which weights learn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trainable {
    /// Layers, from the lowest, that keep their weights, and the embedding with them: a trunk that `[ppo]` can hold once for all
    /// roles.
    pub freeze_layers: usize,
    /// Whether the embedding keeps its weights (it does anyway when layers are frozen).
    pub freeze_embeddings: bool,
    /// Trains adapters, and the scalar head of a reward model, instead of the model's weights.
    pub lora: Option<Lora>,
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
