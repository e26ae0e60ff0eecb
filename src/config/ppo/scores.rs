//! What becomes of scores before they are rewards: a common scale, a clip, and penalties on how a response ended.

use serde::{Deserialize, Serialize};

use super::Keys;

/// The keys of scores in `[ppo]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// How scores are standardised before they become rewards.
    pub score_normalization: ScoreNormalization,
    /// Standardised scores are clipped to ± this.
    pub score_clip: Option<f64>,
    /// Subtracted from the score of a completion that does not end by itself.
    pub missing_eos_penalty: Option<f64>,
    /// The last so many of `max_new_tokens` cost a completion a penalty that grows with each; 0 has no such penalty (Yu et al. 2025,
    /// "DAPO", eq. 13).
    pub overlong_buffer: usize,
    /// What is subtracted from the score of a completion that uses all of them.
    pub overlong_penalty: f64,
}

/// How scores are standardised before they become rewards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreNormalization {
    /// They are not.
    None,
    /// By mean and deviation of the scores of all batches so far; groups that dynamic sampling drops are in none.
    Running,
    /// By mean and deviation of the reference's samples, measured once before training.
    Reference,
}

impl Default for Scores {
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

impl Scores {
    /// Notes values out of range; a completion has at most `max_new_tokens`.
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
            "5.0 is usual; remove it to not clip",
        );
        self.check_overlong(max_new_tokens, keys);
    }

    fn check_overlong(&self, max_new_tokens: usize, keys: &mut Keys<'_, '_>) {
        let mend = "it is subtracted; 1.0 is usual, and overlong_buffer = 0 has no penalty";
        keys.above("overlong_penalty", self.overlong_penalty, 0.0, mend);
        if self.overlong_buffer > max_new_tokens {
            let message = format!(
                "is above max_new_tokens = {max_new_tokens}, of which it is the last part; lower it (a quarter is usual)"
            );
            keys.wrong("overlong_buffer", self.overlong_buffer, message);
        }
        let usual = Self::default().overlong_penalty;
        if self.overlong_buffer == 0 && self.overlong_penalty != usual {
            let message = "is of no use without overlong_buffer; set that to the number of tokens over which it grows, or remove \
                           this key";
            keys.wrong("overlong_penalty", self.overlong_penalty, message);
        }
    }
}
