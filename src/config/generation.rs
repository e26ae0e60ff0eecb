//! Sampling of completions: lengths, temperature, filters of the distribution, and stop texts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Keys;

/// Smallest temperature: logits divided by less may overflow an `f32`. The generator has the same
/// limit.
const LEAST_TEMPERATURE: f64 = 1e-4;

/// Sampling settings: keys of `[ppo]`, and flags of `collimate generate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Generation {
    /// Largest number of tokens of a completion.
    pub max_new_tokens: usize,
    /// Smallest number of tokens of a completion; until then no stop token can be drawn.
    pub min_new_tokens: usize,
    /// Sampling temperature: the logits are divided by it, from 0.0001 to 10000.
    pub temperature: f64,
    /// Number of likeliest tokens to sample from, ties included; 0 does not cut.
    pub top_k: usize,
    /// Sample from the smallest set of likeliest tokens whose probabilities sum to this value; 1.0
    /// does not cut.
    pub top_p: f64,
    /// Sample from tokens at least this share as probable as the likeliest; 0.0 does not cut.
    pub min_p: f64,
    /// Texts that end a completion and are left out of it.
    ///
    /// The name of a special token is that token.
    pub stop: Vec<String>,
    /// Token ids that end a completion, in addition to those that the model's folder names.
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
    /// Whether a filter excludes tokens from sampling.
    pub fn cuts(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// Reports values out of range.
    pub fn check(&self, keys: &mut Keys<'_, '_>) {
        keys.at_least("max_new_tokens", self.max_new_tokens, 1, "64 is usual");
        if self.min_new_tokens > self.max_new_tokens {
            let message = format!(
                "is above max_new_tokens = {}; lower it",
                self.max_new_tokens
            );
            keys.wrong("min_new_tokens", self.min_new_tokens, message);
        }
        let mend = "1.0 samples from the model's own distribution";
        keys.above("temperature", self.temperature, 0.0, mend);
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
