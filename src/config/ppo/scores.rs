//! Shaping of scores into rewards: standardisation, clipping, and penalties on the end of a
//! response.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Keys;

/// The keys of `[ppo]` that shape scores into rewards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScoreShaping {
    /// Statistics that standardise scores before they become rewards.
    pub score_normalization: ScoreNormalization,
    /// Limit on standardised scores, which are clipped to ± this value; unset does not clip.
    pub score_clip: Option<f64>,
    /// Penalty subtracted from the score of a completion that reaches `max_new_tokens` without an
    /// end token.
    #[schemars(extend("x-default" = "unset: no penalty"))]
    pub missing_eos_penalty: Option<f64>,
    /// Number of last tokens within `max_new_tokens` over which a length penalty grows (DAPO, Yu et
    /// al. 2025, eq. 13); 0 has no such penalty.
    pub overlong_buffer: usize,
    /// Length penalty subtracted from the score of a completion that uses the whole
    /// `overlong_buffer`.
    pub overlong_penalty: f64,
}

/// Statistics that standardise scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScoreNormalization {
    /// Scores are used as they are.
    None,
    /// Mean and standard deviation of the scores of all batches so far, without the prompts that
    /// `dynamic_sampling` dropped.
    Running,
    /// Mean and standard deviation of the reference's samples, measured once before training.
    Reference,
}

impl Default for ScoreShaping {
    fn default() -> Self {
        Self {
            score_normalization: ScoreNormalization::None,
            score_clip: None,
            missing_eos_penalty: None,
            overlong_buffer: 0,
            overlong_penalty: 1.0,
        }
    }
}

impl ScoreShaping {
    /// Reports values out of range; a completion has at most `max_new_tokens`.
    pub(super) fn check(&self, max_new_tokens: usize, keys: &mut Keys<'_, '_>) {
        let mend = "it is subtracted; 1.0 is usual";
        keys.not_negative(
            "missing_eos_penalty",
            self.missing_eos_penalty.unwrap_or(0.0),
            mend,
        );
        keys.above(
            "score_clip",
            self.score_clip.unwrap_or(1.0),
            0.0,
            "5.0 is usual; remove it for no clipping",
        );
        self.check_overlong(max_new_tokens, keys);
    }

    fn check_overlong(&self, max_new_tokens: usize, keys: &mut Keys<'_, '_>) {
        let mend = "it is subtracted; 1.0 is usual, and overlong_buffer = 0 has no penalty";
        keys.above("overlong_penalty", self.overlong_penalty, 0.0, mend);
        if self.overlong_buffer > max_new_tokens {
            let message = format!(
                "is above max_new_tokens = {max_new_tokens}, of which it is the last part; lower \
                 it (a quarter is usual)"
            );
            keys.wrong("overlong_buffer", self.overlong_buffer, message);
        }
        let usual = Self::default().overlong_penalty;
        if self.overlong_buffer == 0 && self.overlong_penalty != usual {
            let message = "has no effect without overlong_buffer; set that to the number of tokens \
                           over which the penalty grows, or remove this key";
            keys.wrong("overlong_penalty", self.overlong_penalty, message);
        }
    }
}
