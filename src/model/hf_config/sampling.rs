//! Keys of `generation_config.json` that would change how completions are generated. They are named
//! in a note and not applied: flags or the run's configuration determine sampling, and log-probs
//! are those of that distribution.

use serde_json::Value;

use super::HfConfig;
use super::keys::says_something;

/// Keys without effect on the choice of tokens, and keys that are read elsewhere.
const HARMLESS: &[&str] = &[
    "assistant_confidence_threshold",
    "bos_token_id",
    "cache_implementation",
    "decoder_start_token_id",
    "do_sample",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
];

/// Values that have no effect.
const NEUTRAL: &[(&str, f64)] = &[
    ("diversity_penalty", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("guidance_scale", 1.0),
    ("length_penalty", 1.0),
    ("num_beam_groups", 1.0),
    ("num_beams", 1.0),
    ("repetition_penalty", 1.0),
    ("temperature", 1.0),
    ("top_p", 1.0),
    ("typical_p", 1.0),
];

impl HfConfig {
    /// The settings of `generation_config.json` that would change the generated tokens, with their
    /// values, except for settings in `used`.
    pub fn unread_sampling(&self, used: &[(&str, f64)]) -> Vec<(&str, &Value)> {
        let is = |list: &[(&str, f64)], key: &str, value: &Value| {
            list.iter()
                .any(|(name, known)| *name == key && value.as_f64() == Some(*known))
        };
        let counts = |(key, value): &(&str, &Value)| {
            let harmless = key.starts_with('_') || HARMLESS.contains(key);
            says_something(value) && !harmless && !is(NEUTRAL, key, value) && !is(used, key, value)
        };
        let settings = self.generation.iter();
        settings
            .map(|(key, value)| (key.as_str(), value))
            .filter(counts)
            .collect()
    }
}
