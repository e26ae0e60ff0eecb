//! Keys of `config.json` that [`super::parse`] does not read: they have no effect, are refused, or
//! are named in a note.
//!
//! transformers reads the keys of the class that `model_type` names and ignores all others. A key
//! that changes the results of a related family (multipliers, soft caps, other attention) means
//! that the weights belong to another model, and is refused. Dropout is off in every pass, as in
//! inference.

use serde_json::Value;

use super::HfConfigError;
use super::fields::JsonFields;
use crate::model::config::Family;

/// Keys that are read for every family.
const SHARED: &[&str] = &[
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "model_type",
    "num_labels",
    "pad_token_id",
    "tie_word_embeddings",
    "vocab_size",
];

/// Keys that are read for families with rotary positions.
const ROTARY: &[&str] = &[
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
];

const LLAMA: &[&str] = &["attention_bias", "mlp_bias"];
const MISTRAL: &[&str] = &["sliding_window"];
const QWEN2: &[&str] = &[
    "layer_types",
    "max_window_layers",
    "sliding_window",
    "use_sliding_window",
];
const QWEN3: &[&str] = &[
    "attention_bias",
    "layer_types",
    "max_window_layers",
    "sliding_window",
    "use_sliding_window",
];
const GPT2: &[&str] = &[
    "activation_function",
    "add_cross_attention",
    "layer_norm_epsilon",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
];

/// Keys that do not affect a forward pass in `f32` without dropout.
const HARMLESS: &[&str] = &[
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "attn_pdrop",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "dtype",
    "embd_pdrop",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "is_llama_config",
    "is_causal",
    "model_max_length",
    "n_ctx",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "problem_type",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "return_dict",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// Keys of other families that change results, unless they are null, false, empty, or have the
/// value given here.
const FOREIGN: &[(&str, Option<f64>)] = &[
    ("alibi", None),
    ("attention_chunk_size", None),
    ("attention_multiplier", None),
    ("attn_logit_softcapping", None),
    ("attn_temperature_tuning", None),
    ("clip_qkv", None),
    ("compression_config", None),
    ("cross_attention_hidden_size", None),
    ("dim_model_base", None),
    ("embedding_multiplier", Some(1.0)),
    ("final_logit_softcapping", None),
    ("hidden_activation", None),
    ("is_encoder_decoder", None),
    ("logit_scale", Some(1.0)),
    ("logits_scaling", Some(1.0)),
    ("mup_scale_emb", Some(1.0)),
    ("mup_use_scaling", None),
    ("no_rope_layers", None),
    ("num_experts", None),
    ("num_local_experts", None),
    ("parallel_attn", None),
    ("pruned_heads", None),
    ("qk_layernorm", None),
    ("quantization", None),
    ("query_pre_attn_scalar", None),
    ("residual_multiplier", Some(1.0)),
    ("rotary_dim", None),
    ("rotary_pct", Some(1.0)),
    ("scale_depth", Some(1.0)),
    ("scale_emb", Some(1.0)),
    ("use_bidirectional_attention", None),
    ("use_mrope", None),
    ("use_parallel_residual", None),
    ("use_qk_norm", None),
];

/// Refuses keys that describe another computation than that of the `model_type`.
///
/// # Errors
/// If there is such a key; the error names the first.
pub(super) fn refuse_foreign(fields: &JsonFields) -> Result<(), HfConfigError> {
    let counts = |(key, neutral): &&(&'static str, Option<f64>)| {
        let value = fields.get(key).filter(|value| says_something(value));
        value.is_some_and(|value| neutral.is_none() || value.as_f64() != *neutral)
    };
    if let Some((key, neutral)) = FOREIGN.iter().find(counts) {
        let without = "none, because the family of model_type computes without it";
        let supported = neutral.map_or(without.to_owned(), |neutral| format!("{neutral}"));
        return Err(fields.unsupported(key, supported));
    }
    match fields.flag("is_causal")? {
        Some(false) => Err(fields.unsupported("is_causal", "true")),
        _ => Ok(()),
    }
}

/// Keys that are neither read nor known to have no effect.
pub(super) fn unread<'f>(fields: &JsonFields<'f>, family: Family) -> Vec<&'f str> {
    let own: [&[&str]; 2] = match family {
        Family::Llama => [ROTARY, LLAMA],
        Family::Mistral => [ROTARY, MISTRAL],
        Family::Qwen2 => [ROTARY, QWEN2],
        Family::Qwen3 => [ROTARY, QWEN3],
        Family::Gpt2 => [GPT2, &[]],
    };
    let foreign = |key: &str| FOREIGN.iter().any(|(name, _)| *name == key);
    let is_known = |key: &str| {
        let lists = [SHARED, HARMLESS, own[0], own[1]];
        key.starts_with('_') || foreign(key) || lists.iter().any(|list| list.contains(&key))
    };
    let unread = fields
        .entries()
        .filter(|(key, value)| !is_known(key) && says_something(value));
    unread.map(|(key, _)| key).collect()
}

/// Whether a value sets anything: null, false, 0 and empty values do not.
pub(super) fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::{Map, json};

    use super::*;
    use crate::config::from_word;

    /// The keys of a golden model that are named on the terminal, after `changes`.
    fn unread_in(name: &str, changes: Value) -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
        let text = fs::read(root.join(name).join("config.json")).unwrap();
        let mut config: Map<String, Value> = serde_json::from_slice(&text).unwrap();
        config.extend(changes.as_object().unwrap().clone());
        let fields = JsonFields::new(Path::new("config.json"), &config);
        let family = from_word::<Family>(config["model_type"].as_str().unwrap()).unwrap();
        refuse_foreign(&fields).unwrap();
        let unread = unread(&fields, family);
        unread.into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn keys_that_are_not_read_are_named_and_no_others() {
        let golden = [
            "llama",
            "llama_old_dialect",
            "llama_reward",
            "mistral_swa",
            "qwen2",
            "qwen3",
            "gpt2",
        ];
        for name in golden {
            assert_eq!(unread_in(name, json!({})), [""; 0], "{name}");
        }
        let neutral = json!({
            "residual_multiplier": 1.0, "final_logit_softcapping": null, "use_mrope": false,
            "no_rope_layers": [],
            "attention_dropout": 0.1, "pretraining_tp": 2, "_name_or_path": "x",
            "rope_interleaved": false,
        });
        assert_eq!(unread_in("llama", neutral), [""; 0]);
        let odd = json!({
            "sliding_window": 4096, "depth_gain": 2.0, "auto_map": { "AutoModel": "code.py" },
        });
        assert_eq!(
            unread_in("llama", odd),
            ["sliding_window", "depth_gain", "auto_map"]
        );
        assert_eq!(
            unread_in("mistral", json!({ "attention_bias": true })),
            ["attention_bias"]
        );
        assert_eq!(
            unread_in("gpt2", json!({ "rope_theta": 1e6 })),
            ["rope_theta"]
        );
    }
}
