//! How prompts become a batch: how many sequences at once, in how much cache, and whether groups that teach nothing are replaced.

use serde::{Deserialize, Serialize};

use super::Keys;

/// The keys of rollouts in `[ppo]`, beside those of sampling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// Most extra rounds in which prompts whose samples all score alike (before normalising and penalties) are replaced by the next prompts; 0 replaces none
    /// (Yu et al. 2025, "DAPO", eq. 11). What then is still missing is filled with the prompts that were to be replaced, so that a
    /// batch always has its size. `max_epochs` counts iterations, however many prompts are replaced in them.
    pub dynamic_sampling: usize,
    /// Most sequences that are generated at once. Results do not depend on it.
    pub rollout_batch: usize,
    /// Most bytes of the key-value cache; when short, sequences wait.
    pub cache_bytes: Option<usize>,
    /// Most tokens of the key-value cache, instead of `cache_bytes`.
    pub cache_tokens: Option<usize>,
    /// Whether the policy reads its samples once more before it learns, to measure how far the recorded log-probs are from
    /// training's. On the CPU they are the same bits, and not reading saves a pass; on devices that do not promise this, it is done in
    /// any case.
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
    /// Notes values out of range; each prompt has `samples` completions.
    pub(super) fn check(&self, samples: usize, keys: &mut Keys<'_, '_>) {
        if self.dynamic_sampling > 0 && samples == 1 {
            let message = "replaces prompts whose samples all score alike, which one sample always does; set num_samples_per_prompt \
                           to 2 or more (8 is usual), or remove this key";
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
