//! How completions are sampled: lengths, the cut of the distribution, and what ends one.

use serde::{Deserialize, Serialize};

use super::check::Keys;

/// Logits that are divided by less may have no place in an `f32`; the generator asks for the same.
const LEAST_TEMPERATURE: f64 = 1e-4;

/// Sampling settings. In a configuration they stand in `[ppo]`; the `generate` command has them as
/// flags.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Most tokens of a completion.
    pub max_new_tokens: usize,
    /// Fewest tokens of a completion: until then what ends one cannot be drawn.
    pub min_new_tokens: usize,
    /// Divides the logits; from 0.0001 to 10000.
    pub temperature: f64,
    /// Only this many likeliest tokens can be drawn (ties kept); 0 does not cut.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability can be drawn; 1 does not cut.
    pub top_p: f64,
    /// Only tokens at least this share as probable as the likeliest can be drawn; 0 does not cut.
    pub min_p: f64,
    /// Texts that end a completion, which leaves them out; the name of a special token stands for
    /// that token.
    pub stop: Vec<String>,
    /// Tokens that end a completion, besides those that the model's folder names.
    pub stop_token_ids: Vec<u32>,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            min_new_tokens: 0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
        }
    }
}

impl Generation {
    /// True if a filter leaves some tokens out of the draw.
    pub fn cuts(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// Notes values out of range.
    pub fn check(&self, keys: &mut Keys<'_, '_>) {
        keys.at_least("max_new_tokens", self.max_new_tokens, 1, "64 is usual");
        if self.min_new_tokens > self.max_new_tokens {
            let message = format!(
                "is above max_new_tokens = {}; lower it",
                self.max_new_tokens
            );
            keys.wrong("min_new_tokens", self.min_new_tokens, message);
        }
        let mend = "1.0 samples from the model as it is";
        keys.above("temperature", self.temperature, 0.0, mend);
        // A lower temperature would always draw the likeliest token.
        if self.temperature > 0.0 && self.temperature.is_finite() {
            keys.between(
                "temperature",
                self.temperature,
                LEAST_TEMPERATURE,
                1e4,
                mend,
            );
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            keys.wrong(
                "top_p",
                self.top_p,
                "must be above 0 and at most 1; 1.0 does not cut",
            );
        }
        keys.between("min_p", self.min_p, 0.0, 1.0, "0.0 does not cut");
        if self.stop.iter().any(String::is_empty) {
            keys.wrong(
                "stop",
                format!("{:?}", self.stop),
                "an empty text would end every completion; remove it",
            );
        }
    }
}
