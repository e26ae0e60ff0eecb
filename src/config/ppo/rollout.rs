//! Rollouts: sequences generated at the same time, the size of the cache, and dynamic sampling.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Keys;

/// The keys of rollouts in `[ppo]`, besides those of sampling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rollout {
    /// Largest number of extra rounds that replace prompts whose samples all score alike (DAPO, Yu
    /// et al. 2025, eq. 11); 0 replaces none.
    ///
    /// Scores are compared before normalisation and penalties. If the batch is not full after the
    /// last round, the dropped prompts fill it. `max_epochs` counts iterations, not prompts.
    pub dynamic_sampling: usize,
    /// Largest number of sequences generated at the same time.
    ///
    /// Results do not depend on it.
    pub rollout_batch: usize,
    /// Largest size of the key-value cache in bytes; sequences wait when it is full.
    #[schemars(extend("x-default" = "as large as needed"))]
    pub cache_bytes: Option<usize>,
    /// Largest size of the key-value cache in tokens, instead of `cache_bytes`.
    #[schemars(extend("x-default" = "as large as needed"))]
    pub cache_tokens: Option<usize>,
    /// Whether to compute the log-probs of samples again before the update, to measure their
    /// deviation from the recorded ones.
    ///
    /// On the CPU both have the same bits. On other devices they are always computed again.
    pub rescore: bool,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            dynamic_sampling: 0,
            rollout_batch: 64,
            cache_bytes: None,
            cache_tokens: None,
            rescore: false,
        }
    }
}

impl Rollout {
    /// Reports values out of range; each prompt has `samples` completions.
    pub(super) fn check(&self, samples: usize, keys: &mut Keys<'_, '_>) {
        if self.dynamic_sampling > 0 && samples == 1 {
            let message = "replaces prompts whose samples all score alike, as a single sample \
                           does; set num_samples_per_prompt to 2 or more (8 is usual), or remove \
                           this key";
            keys.wrong("dynamic_sampling", self.dynamic_sampling, message);
        }
        keys.at_least("rollout_batch", self.rollout_batch, 1, "64 is usual");
        let mend = "remove it for a cache as large as needed";
        keys.at_least("cache_bytes", self.cache_bytes.unwrap_or(1), 1, mend);
        keys.at_least("cache_tokens", self.cache_tokens.unwrap_or(1), 1, mend);
        if let (Some(bytes), Some(_)) = (self.cache_bytes, self.cache_tokens) {
            keys.wrong(
                "cache_bytes",
                bytes,
                "ppo.cache_tokens limits the cache too; remove one of the two",
            );
        }
    }
}
