//! `config.json` → [`DecoderConfig`]. An absent key has the default of the family's class in
//! transformers; the main sizes must be present.

use serde_json::Value;

use super::HfConfigError;
use super::fields::JsonFields;
use super::keys;
use crate::config::from_word;
use crate::model::config::{
    Activation, DecoderConfig, Family, Head, NormKind, Position, QkNorm, RopeConfig, RopeScaling,
    SlidingWindow,
};

type Parsed<T> = Result<T, HfConfigError>;

/// transformers' default rotary base.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

pub(super) fn decoder(fields: &JsonFields) -> Parsed<DecoderConfig> {
    if fields.get("quantization_config").is_some() {
        let supported = "weights in F32, BF16, F16 or F64 (dequantise the model first)";
        return Err(fields.unsupported("quantization_config", supported));
    }
    let family = family(fields)?;
    keys::refuse_foreign(fields)?;
    let decoder = match family {
        Family::Gpt2 => gpt2(fields)?,
        family => llama(fields, family)?,
    };
    decoder
        .validate()
        .map_err(|source| HfConfigError::Impossible {
            file: fields.file().to_owned(),
            source,
        })?;
    Ok(decoder)
}

fn family(fields: &JsonFields) -> Parsed<Family> {
    let model_type = fields
        .text("model_type")?
        .ok_or_else(|| fields.missing("model_type", "the name of a model family"))?;
    from_word(model_type).ok_or_else(|| {
        let known = Family::ALL.map(|family| family.to_string()).join(", ");
        fields.unsupported("model_type", known)
    })
}

/// Llama, Mistral, Qwen2 and Qwen3.
fn llama(fields: &JsonFields, family: Family) -> Parsed<DecoderConfig> {
    let hidden_size = fields.required_size("hidden_size")?;
    let num_attention_heads = fields.required_size("num_attention_heads")?;
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false)
        && matches!(family, Family::Llama | Family::Qwen3);
    Ok(DecoderConfig {
        family,
        hidden_size,
        intermediate_size: fields.required_size("intermediate_size")?,
        num_hidden_layers: fields.required_size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: key_value_heads(fields, family, num_attention_heads)?,
        head_dim: match (fields.size("head_dim")?, family) {
            (Some(size), _) => size,
            (None, Family::Qwen3) => 128,
            (None, _) => hidden_size / num_attention_heads.max(1),
        },
        vocab_size: fields.required_size("vocab_size")?,
        max_position_embeddings: fields.required_size("max_position_embeddings")?,
        norm: NormKind::Rms {
            eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
        },
        position: Position::Rope(rope(fields)?),
        activation: swiglu(fields)?,
        qkv_bias: attention_bias || family == Family::Qwen2,
        output_bias: attention_bias,
        mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false) && family == Family::Llama,
        qk_norm: match family {
            Family::Qwen3 => QkNorm::PerHead,
            _ => QkNorm::Absent,
        },
        sliding_window: sliding_window(fields, family)?,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        initializer_range: fields.number("initializer_range")?.unwrap_or(0.02),
        bos_token_id: fields.token_id("bos_token_id")?,
        eos_token_ids: fields.token_ids("eos_token_id")?,
        pad_token_id: fields.token_id("pad_token_id")?,
        head: head(fields, family)?,
    })
}

fn gpt2(fields: &JsonFields) -> Parsed<DecoderConfig> {
    // These keys change the attention.
    for (key, supported) in [
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
        ("add_cross_attention", false),
    ] {
        if fields.flag(key)?.unwrap_or(supported) != supported {
            return Err(fields.unsupported(key, supported.to_string()));
        }
    }
    let hidden_size = fields.required_size("n_embd")?;
    let heads = fields.required_size("n_head")?;
    let inner = fields.size("n_inner")?;
    Ok(DecoderConfig {
        family: Family::Gpt2,
        hidden_size,
        intermediate_size: inner.unwrap_or(hidden_size.saturating_mul(4)),
        num_hidden_layers: fields.required_size("n_layer")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden_size / heads.max(1),
        vocab_size: fields.required_size("vocab_size")?,
        max_position_embeddings: fields.required_size("n_positions")?,
        norm: NormKind::Layer {
            eps: fields.number("layer_norm_epsilon")?.unwrap_or(1e-5),
        },
        position: Position::Learned,
        activation: gelu(fields)?,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        qk_norm: QkNorm::Absent,
        sliding_window: None,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(true),
        initializer_range: fields.number("initializer_range")?.unwrap_or(0.02),
        bos_token_id: fields.token_id("bos_token_id")?,
        eos_token_ids: fields.token_ids("eos_token_id")?,
        pad_token_id: fields.token_id("pad_token_id")?,
        head: head(fields, Family::Gpt2)?,
    })
}

/// Number of key-value heads: null means one per query head; an absent key means the default of the
/// family's class.
fn key_value_heads(fields: &JsonFields, family: Family, heads: usize) -> Parsed<usize> {
    let class_default = match family {
        Family::Mistral => 8,
        Family::Qwen2 | Family::Qwen3 => 32,
        Family::Llama | Family::Gpt2 => heads,
    };
    let absent = if fields.holds_null("num_key_value_heads") {
        heads
    } else {
        class_default
    };
    Ok(fields.size("num_key_value_heads")?.unwrap_or(absent))
}

fn swiglu(fields: &JsonFields) -> Parsed<Activation> {
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(Activation::SwiGlu),
        Some(_) => Err(fields.unsupported("hidden_act", "silu")),
    }
}

fn gelu(fields: &JsonFields) -> Parsed<Activation> {
    match fields.text("activation_function")? {
        None | Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some("gelu") => Ok(Activation::Gelu),
        Some(_) => {
            Err(fields.unsupported("activation_function", "gelu_new, gelu_pytorch_tanh, gelu"))
        }
    }
}

/// The rotary embedding, in either dialect. As in transformers 5, `rope_scaling` has precedence
/// over `rope_parameters`, and a `rope_theta` inside either of them over one at the top level.
fn rope(fields: &JsonFields) -> Parsed<RopeConfig> {
    let top_theta = fields.number("rope_theta")?;
    let partial = fields.number("partial_rotary_factor")?;
    if partial.is_some_and(|factor| factor != 1.0) {
        return Err(fields.unsupported("partial_rotary_factor", "1.0"));
    }
    let scaling = match fields.object("rope_scaling")? {
        Some(object) => Some(object),
        None => fields.object("rope_parameters")?,
    };
    let inner_theta = match &scaling {
        Some(object) => object.number("rope_theta")?,
        None => None,
    };
    Ok(RopeConfig {
        theta: inner_theta.or(top_theta).unwrap_or(DEFAULT_ROPE_THETA),
        scaling: match &scaling {
            Some(object) => rope_scaling(object, fields)?,
            None => RopeScaling::None,
        },
    })
}

fn rope_scaling(scaling: &JsonFields, config: &JsonFields) -> Parsed<RopeScaling> {
    let partial = scaling.number("partial_rotary_factor")?;
    if partial.is_some_and(|factor| factor != 1.0) {
        return Err(scaling.unsupported("partial_rotary_factor", "1.0"));
    }
    // Other models nest one object for each kind of layer.
    if scaling.get("full_attention").is_some() {
        return Err(scaling.unsupported("full_attention", "one rotary embedding for all layers"));
    }
    let key = match scaling.get("rope_type") {
        Some(_) => "rope_type",
        None => "type",
    };
    match scaling.text(key)? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: scaling.required_number("factor")?,
        }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: scaling.required_number("factor")?,
            low_freq_factor: scaling.required_number("low_freq_factor")?,
            high_freq_factor: scaling.required_number("high_freq_factor")?,
            // A top-level value has precedence, as in transformers 5.
            original_max_position_embeddings: match config.size(ORIGINAL_CONTEXT)? {
                Some(size) => size,
                None => match scaling.size(ORIGINAL_CONTEXT)? {
                    Some(size) => size,
                    None => config.required_size("max_position_embeddings")?,
                },
            },
        }),
        Some(_) => Err(scaling.unsupported(key, "default, linear, llama3")),
    }
}

const ORIGINAL_CONTEXT: &str = "original_max_position_embeddings";

/// Mistral limits every layer; Qwen the layers that `layer_types` names, else those from
/// `max_window_layers` up, and only with `use_sliding_window`. The other families ignore the key,
/// as transformers does.
fn sliding_window(fields: &JsonFields, family: Family) -> Parsed<Option<SlidingWindow>> {
    /// Default of transformers in all three families.
    const CLASS_WINDOW: usize = 4096;
    let all = 0..fields.required_size("num_hidden_layers")?;
    let typed = match (family, fields.texts("layer_types")?) {
        (Family::Qwen2 | Family::Qwen3, Some(types)) => {
            Some(sliding_layers(fields, &types, all.len())?)
        }
        _ => None,
    };
    let limits = typed.as_ref().is_some_and(|layers| !layers.is_empty());
    let off =
        fields.holds_null("sliding_window") || !fields.flag("use_sliding_window")?.unwrap_or(false);
    if limits && off {
        // transformers fails, because these layers have no window.
        let supported = "full_attention alone without use_sliding_window and sliding_window";
        return Err(fields.unsupported("layer_types", supported));
    }
    let size = match fields.size("sliding_window")? {
        None if fields.holds_null("sliding_window") => return Ok(None),
        size => size.unwrap_or(CLASS_WINDOW),
    };
    let layers: Vec<usize> = match family {
        Family::Llama | Family::Gpt2 => return Ok(None),
        Family::Mistral => all.take(MOST_LISTED_LAYERS).collect(),
        Family::Qwen2 | Family::Qwen3 if !fields.flag("use_sliding_window")?.unwrap_or(false) => {
            return Ok(None);
        }
        Family::Qwen2 | Family::Qwen3 => match typed {
            Some(layers) => layers,
            None => {
                let first = fields.size("max_window_layers")?.unwrap_or(28);
                all.skip(first).take(MOST_LISTED_LAYERS).collect()
            }
        },
    };
    Ok((!layers.is_empty()).then_some(SlidingWindow { size, layers }))
}

/// Limits `num_hidden_layers` until validation refuses an absurd value, so that a list with an item
/// a layer does not fill the memory before.
const MOST_LISTED_LAYERS: usize = 1 << 13;

fn sliding_layers(fields: &JsonFields, types: &[&str], layers: usize) -> Parsed<Vec<usize>> {
    let known = types
        .iter()
        .all(|kind| ["full_attention", "sliding_attention"].contains(kind));
    if !known || types.len() != layers {
        let supported = format!("a list of {layers}, each full_attention or sliding_attention");
        return Err(fields.unsupported("layer_types", supported));
    }
    let limited = |(_, kind): &(usize, &&str)| **kind == "sliding_attention";
    Ok(types
        .iter()
        .enumerate()
        .filter(limited)
        .map(|(layer, _)| layer)
        .collect())
}

/// Head by `architectures`; a folder that names none, or the bare decoder, counts as a language
/// model.
fn head(fields: &JsonFields, family: Family) -> Parsed<Head> {
    let architectures = fields.texts("architectures")?.unwrap_or_default();
    let Some(&architecture) = architectures.first() else {
        return Ok(Head::LanguageModel);
    };
    if architecture.ends_with("ForSequenceClassification") {
        check_one_label(fields)?;
        return Ok(Head::Score);
    }
    let language_model = architecture.ends_with("ForCausalLM")
        || architecture == family.architecture(Head::LanguageModel)
        || architecture == family.base_architecture();
    if language_model {
        return Ok(Head::LanguageModel);
    }
    let supported = [Head::LanguageModel, Head::Score].map(|head| family.architecture(head));
    Err(fields.unsupported("architectures", supported.join(", ")))
}

/// Number of labels by `id2label`, else by `num_labels`; transformers assumes two if neither is
/// given.
fn check_one_label(fields: &JsonFields) -> Parsed<()> {
    let (key, labels) = match fields.get("id2label").and_then(Value::as_object) {
        Some(labels) => ("id2label", Some(labels.len())),
        None => ("num_labels", fields.size("num_labels")?),
    };
    match labels {
        Some(1) => Ok(()),
        Some(_) => Err(fields.unsupported(key, "one label, the score")),
        None => Err(fields.missing("num_labels", "1, for one score (transformers takes 2)")),
    }
}
