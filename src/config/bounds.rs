//! Upper bounds of numbers: far above useful values, and below values that would exhaust memory,
//! run for ever, or overflow a product.
//!
//! A key that its own checks bound, or that needs no bound, is in [`FREE`] with the reason. A key
//! in neither table fails the test.

use toml::Value;

use super::check::Checker;
use super::document::Document;

/// Optimizer steps. Steps times the batch size stay below 2⁶³.
const STEPS: f64 = 1e12;
/// Rows, sequences or records of a batch.
const ROWS: f64 = 1e6;
/// Tokens of one sequence.
const LENGTH: f64 = 16_777_216.0;
/// Constants of the optimizer.
const RATE: f64 = 1e3;
/// Weights of terms of a loss or reward.
const WEIGHT: f64 = 1e6;
/// Learning rates, scores and their limits: weights and scores are `f32`.
const SCORE: f64 = 1e30;
/// Counts that take neither memory nor time.
const COUNT: f64 = 1e9;

/// The largest value of a key, in any table.
const MOST: &[(&str, f64)] = &[
    ("max_steps", STEPS),
    ("warmup_steps", STEPS),
    ("save_steps", STEPS),
    ("eval_steps", STEPS),
    ("log_steps", STEPS),
    ("keep_every", STEPS),
    ("critic_warmup", STEPS),
    ("max_epochs", 1e6),
    ("keep_last", COUNT),
    ("max_bad_steps", COUNT),
    ("early_stopping_patience", COUNT),
    ("eval_batches", COUNT),
    ("eval_samples", COUNT),
    ("batch_size", ROWS),
    ("ptx_batch_size", ROWS),
    ("rollout_batch", ROWS),
    ("num_mini_batches", ROWS),
    ("num_samples_per_prompt", 1e5),
    ("num_ppo_epochs", 1e4),
    ("dynamic_sampling", 1e3),
    ("micro_batch_tokens", COUNT),
    ("context_length", LENGTH),
    ("max_length", LENGTH),
    ("ptx_length", LENGTH),
    ("max_new_tokens", LENGTH),
    ("min_new_tokens", LENGTH),
    ("overlong_buffer", LENGTH),
    ("max_position_embeddings", LENGTH),
    ("sliding_window", LENGTH),
    ("vocab_size", LENGTH),
    ("hidden_size", 262_144.0),
    ("intermediate_size", 1_048_576.0),
    ("num_hidden_layers", 4096.0),
    ("num_attention_heads", 65_536.0),
    ("num_key_value_heads", 65_536.0),
    ("head_dim", 65_536.0),
    ("freeze_layers", 4096.0),
    ("trunk_layers", 4096.0),
    ("r", 65_536.0),
    ("threads", 1024.0),
    ("learning_rate", SCORE),
    ("critic_learning_rate", SCORE),
    ("weight_decay", RATE),
    ("adam_epsilon", RATE),
    ("max_grad_norm", SCORE),
    ("lora_alpha", WEIGHT),
    ("kl_coef", WEIGHT),
    ("entropy_coef", WEIGHT),
    ("vf_coef", WEIGHT),
    ("ptx_coef", WEIGHT),
    ("center_rewards_coefficient", WEIGHT),
    ("beta", WEIGHT),
    ("simpo_gamma", WEIGHT),
    ("kl_target", COUNT),
    ("kl_horizon", STEPS),
    ("cliprange_high", SCORE),
    ("cliprange_value", SCORE),
    ("dual_clip", SCORE),
    ("target_kl", SCORE),
    ("rollback_kl_factor", COUNT),
    ("score_clip", SCORE),
    ("missing_eos_penalty", SCORE),
    ("overlong_penalty", SCORE),
    ("temperature", 1e4),
    ("weight", SCORE),
    ("deviations", COUNT),
    ("tolerance", SCORE),
    ("pass", SCORE),
    ("fail", SCORE),
    ("min", COUNT),
    ("max", COUNT),
    ("margin", COUNT),
    ("ngram", COUNT),
    ("timeout_seconds", 1e6),
    ("retries", 1e3),
    ("rope_theta", 1e12),
    ("rms_norm_eps", 1.0),
    ("initializer_range", 1.0),
];

/// The largest value of a key in one table, before [`MOST`].
const MOST_IN: &[(&str, &str, f64)] = &[("tokenizer", "vocab_size", 1e6)];

/// Keys with numbers but without a bound here, with the reason.
#[cfg(test)]
const FREE: &[(&str, &str)] = &[
    ("seed", "every seed is valid; below 2^63 by its check"),
    ("eval_seed", "as `seed`"),
    ("top_k", "a number above the vocabulary's size does not cut"),
    (
        "cache_bytes",
        "the cache is never larger than the sequences need",
    ),
    ("cache_tokens", "as `cache_bytes`"),
    ("top_p", "at most 1 by its check"),
    ("min_p", "at most 1 by its check"),
    ("gamma", "at most 1 by its check"),
    ("lam", "at most 1 by its check"),
    ("min_lr_ratio", "at most 1 by its check"),
    ("adam_beta1", "below 1 by its check"),
    ("adam_beta2", "below 1 by its check"),
    ("cliprange", "below 1 by its check"),
    ("max_bad_share", "at most 1 by its check"),
    ("label_smoothing", "below 0.5 by its check"),
    ("eval_fraction", "below 1 by its check"),
    ("layerwise_lr_decay", "at most 1 by its check"),
    ("lora_dropout", "0 by its check"),
    ("backoff_seconds", "at most a minute by its check"),
];

/// Reports every number above its bound. NaN and infinity are left to the key's own checks.
pub(super) fn check(document: &Document, checker: &mut Checker<'_>) {
    for (table, value) in document.tables() {
        for (key, value) in value.as_table().into_iter().flatten() {
            check_value(table, key, value, checker);
        }
    }
}

fn check_value(table: &str, key: &str, value: &Value, checker: &mut Checker<'_>) {
    match value {
        Value::Table(parts) => {
            for (part, value) in parts {
                if let Some(most) = exceeded(table, part, value) {
                    let found = format!("{{ {part} = {value} }}");
                    let message = format!("{part} must be at most {}", shown(most));
                    checker.table(table).wrong(key, found, message);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let name = format!("{table}.{key}[{index}]");
                for (part, value) in item.as_table().into_iter().flatten() {
                    check_value(&name, part, value, checker);
                }
            }
        }
        value => {
            if let Some(most) = exceeded(table, key, value) {
                let message = format!("must be at most {}", shown(most));
                checker.table(table).wrong(key, value, message);
            }
        }
    }
}

/// The largest value that a key may have, if `value` is larger.
fn exceeded(table: &str, key: &str, value: &Value) -> Option<f64> {
    let number = match value {
        Value::Integer(number) => *number as f64,
        Value::Float(number) => *number,
        _ => return None,
    };
    most(table, key).filter(|most| number.is_finite() && number > *most)
}

/// A bound as a user would write it.
pub(super) fn shown(most: f64) -> String {
    match most >= 1e9 && most.log10().fract() == 0.0 {
        true => format!("{most:e}"),
        false => most.to_string(),
    }
}

/// The largest value of `key` in `table`, if it has a bound.
pub(super) fn most(table: &str, key: &str) -> Option<f64> {
    let own = MOST_IN.iter().find(|(t, k, _)| (*t, *k) == (table, key));
    let any = || MOST.iter().find(|(k, _)| *k == key);
    own.map(|(.., most)| *most)
        .or_else(|| any().map(|(_, most)| *most))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::tests::{SAMPLE, resolve_text};
    use crate::config::{LoraTable, Sft};

    /// A configuration in which every key with a number is set or has a default.
    const ALL: &str = r#"
[[ppo.rewards]]
type = "length"
max = 8
[[ppo.rewards]]
type = "http"
url = "http://localhost"
[[ppo.rewards]]
type = "program"
command = ["true"]
[[ppo.rewards]]
type = "repetition"
[[ppo.rewards]]
type = "numeric"
"#;

    /// Keys that are unset unless someone sets them, each with its table.
    const UNSET: &[&str] = &[
        "pretrain.max_epochs",
        "model.head_dim",
        "model.vocab_size",
        "model.sliding_window",
        "ppo.trunk_layers",
        "ppo.cliprange_high",
        "ppo.critic_learning_rate",
        "ppo.score_clip",
        "ppo.missing_eos_penalty",
        "ppo.dual_clip",
        "ppo.target_kl",
        "ppo.rollback_kl_factor",
        "ppo.ptx_batch_size",
        "ppo.cache_bytes",
        "ppo.cache_tokens",
        "sft.lora.r",
        "sft.lora.lora_alpha",
        "ppo.rewards[0].min",
        "ppo.rewards[0].max",
    ];

    /// The names of all keys with a number, such as `ppo.kl_coef`.
    fn numbers() -> Vec<String> {
        let text = format!("{SAMPLE}{ALL}");
        let config = resolve_text(&text, &[]).unwrap();
        let tables = crate::config::written::to_table(&config).unwrap();
        let mut found: Vec<String> = UNSET.iter().map(|key| (*key).to_owned()).collect();
        collect("", &Value::Table(tables), &mut found);
        let lora = Value::try_from(LoraTable::default()).unwrap();
        collect("sft.lora", &lora, &mut found);
        found.sort();
        found.dedup();
        found
    }

    fn collect(name: &str, value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Integer(_) | Value::Float(_) => found.push(name.to_owned()),
            Value::Table(table) => {
                for (key, value) in table {
                    let dot = if name.is_empty() { "" } else { "." };
                    collect(&format!("{name}{dot}{key}"), value, found);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate().filter(|(_, item)| item.is_table()) {
                    collect(&format!("{name}[{index}]"), item, found);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn every_number_has_a_bound_or_a_reason_to_have_none() {
        let numbers = numbers();
        assert!(numbers.len() > 100, "{numbers:?}");
        for name in &numbers {
            let (table, key) = name.rsplit_once('.').unwrap();
            let free = FREE.iter().any(|(free, _)| *free == key);
            assert!(
                most(table, key).is_some() != free,
                "{name}: must have an entry either in MOST or in FREE"
            );
        }
        let keys: BTreeMap<&str, ()> = numbers
            .iter()
            .map(|n| (n.rsplit('.').next().unwrap(), ()))
            .collect();
        let known = MOST
            .iter()
            .map(|(key, _)| key)
            .chain(FREE.iter().map(|(key, _)| key));
        for key in known.filter(|key| **key != "deviations") {
            assert!(keys.contains_key(key), "no key is called {key}");
        }
    }

    /// A number above the bound of its key is refused with its name and the bound.
    #[test]
    fn every_number_that_is_too_large_is_refused() {
        let text = format!("{SAMPLE}{ALL}");
        for name in numbers() {
            let (table, key) = name.rsplit_once('.').unwrap();
            for value in ["9223372036854775807", "1000000000000000", "1e300"] {
                let set = format!("{name}={value}");
                let resolved = resolve_text(&text, &[&set]);
                let Some(most) =
                    most(table, key).filter(|most| value.parse::<f64>().unwrap() > *most)
                else {
                    continue;
                };
                // An integer's key names the type that it needs instead.
                let error = match resolved {
                    Ok(_) => panic!("{set} is taken"),
                    Err(error) => error.to_string(),
                };
                let named = error.contains(&name) || error.contains(table);
                let says = error.contains(&format!("at most {}", shown(most)))
                    || error.contains("expected a whole number");
                assert!(named && says, "{set}: {error}");
            }
        }
    }

    #[test]
    fn the_largest_numbers_are_taken() {
        for set in [
            "sft.batch_size=1000000",
            "run.threads=1024",
            "tokenizer.vocab_size=1000000",
        ] {
            resolve_text(SAMPLE, &[set]).unwrap();
        }
        let usual = Sft::default().training;
        assert!((usual.batch_size as f64) < ROWS && (usual.micro_batch_tokens as f64) < COUNT);
    }
}
