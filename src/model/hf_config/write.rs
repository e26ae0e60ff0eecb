//! [`HfConfig`] → `config.json` and `generation_config.json`. Unknown keys of the files that were
//! read are kept.
//!
//! The dialect is always the older one. transformers 5 converts it on load; transformers 4 ignores
//! the newer keys and would compute with the default rotary base.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{CONFIG, GENERATION_CONFIG, HfConfig, HfConfigError};
use crate::config::ScoreAt;
use crate::files::durable::{on, replace_file};
use crate::model::config::{
    Activation, DecoderConfig, Family, Head, NormKind, Position, RopeConfig, RopeScaling,
    SlidingWindow,
};
use crate::model::weights::SaveDtype;

impl HfConfig {
    /// Writes `config.json`, and for a language model `generation_config.json`, into `folder`,
    /// which is created if needed. `dtype` is the type of the weights in the folder. Keys that the
    /// engine does not know keep their values.
    ///
    /// # Errors
    /// If the decoder is not valid; if a scoring model has no `pad_token_id`, or is scored at the
    /// last token and its `pad_token_id` ends sequences (see
    /// [`scoring_pad_id`](Self::scoring_pad_id)); or if a file cannot be written.
    pub fn write(&self, folder: &Path, dtype: SaveDtype) -> Result<(), HfConfigError> {
        let file = folder.join(CONFIG);
        self.decoder
            .validate()
            .map_err(|source| HfConfigError::Impossible {
                file: file.clone(),
                source,
            })?;
        self.check_scoring_pad(&file)?;
        fs::create_dir_all(folder).map_err(on("create", folder))?;
        write_object(&file, self.config_map(dtype))?;
        self.write_generation(folder)
    }

    /// Writes `generation_config.json` for a language model; a reward model has none.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_generation(&self, folder: &Path) -> Result<(), HfConfigError> {
        match self.decoder.head {
            Head::LanguageModel => {
                write_object(&folder.join(GENERATION_CONFIG), self.generation_map())
            }
            Head::Score => Ok(()),
        }
    }

    fn check_scoring_pad(&self, file: &Path) -> Result<(), HfConfigError> {
        let found = self.decoder.pad_token_id;
        let fits = match self.score_at {
            ScoreAt::Eos => found.is_some_and(|id| self.can_pad_scores(id)),
            ScoreAt::LastNonPad => found.is_some(),
        };
        if self.decoder.head == Head::LanguageModel || fits {
            return Ok(());
        }
        let mut ends = [&self.decoder.eos_token_ids[..], &self.stop_ids].concat();
        ends.sort_unstable();
        ends.dedup();
        Err(HfConfigError::ScoringPad {
            file: file.to_owned(),
            found,
            ends,
        })
    }

    fn config_map(&self, dtype: SaveDtype) -> Map<String, Value> {
        let decoder = &self.decoder;
        let mut map = self.config.clone();
        let architecture = decoder.family.architecture(decoder.head);
        map.insert("architectures".into(), json!([architecture]));
        map.insert("model_type".into(), decoder.family.to_string().into());
        put_sizes(&mut map, decoder);
        match decoder.position {
            Position::Rope(rope) => put_rope(&mut map, &rope),
            Position::Learned => {}
        }
        put_family(&mut map, decoder);
        put_labels(&mut map, decoder.head);
        put_tokens(&mut map, decoder, &self.stop_ids);
        map.remove("dtype");
        map.insert("torch_dtype".into(), dtype.to_string().into());
        map
    }

    fn generation_map(&self) -> Map<String, Value> {
        let mut map = self.generation.clone();
        put_tokens(&mut map, &self.decoder, &self.stop_ids);
        map
    }
}

/// Keys of every family.
fn put_sizes(map: &mut Map<String, Value>, decoder: &DecoderConfig) {
    let (NormKind::Rms { eps } | NormKind::Layer { eps }) = decoder.norm;
    let activation = match decoder.activation {
        Activation::SwiGlu => "silu",
        Activation::GeluTanh => "gelu_new",
        Activation::Gelu => "gelu",
    };
    let values = [
        ("vocab_size", json!(decoder.vocab_size)),
        ("hidden_size", json!(decoder.hidden_size)),
        ("intermediate_size", json!(decoder.intermediate_size)),
        ("num_hidden_layers", json!(decoder.num_hidden_layers)),
        ("num_attention_heads", json!(decoder.num_attention_heads)),
        (
            "max_position_embeddings",
            json!(decoder.max_position_embeddings),
        ),
        ("rms_norm_eps", json!(eps)),
        ("hidden_act", json!(activation)),
        ("initializer_range", json!(decoder.initializer_range)),
        ("tie_word_embeddings", json!(decoder.tie_word_embeddings)),
    ];
    for (name, value) in values {
        map.insert(decoder.family.config_key(name).into(), value);
    }
}

fn put_rope(map: &mut Map<String, Value>, rope: &RopeConfig) {
    map.remove("rope_parameters");
    map.insert("rope_theta".into(), rope.theta.into());
    let scaling = match rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
    };
    map.insert("rope_scaling".into(), scaling);
}

/// Keys of some families.
fn put_family(map: &mut Map<String, Value>, decoder: &DecoderConfig) {
    if decoder.family == Family::Gpt2 {
        return;
    }
    let mut put = |key: &str, value: Value| map.insert(key.into(), value);
    put("num_key_value_heads", decoder.num_key_value_heads.into());
    put("head_dim", decoder.head_dim.into());
    match decoder.family {
        Family::Llama => {
            put("attention_bias", decoder.qkv_bias.into());
            put("mlp_bias", decoder.mlp_bias.into());
        }
        Family::Mistral => {
            let size = decoder.sliding_window.as_ref().map(|window| window.size);
            put("sliding_window", size.into());
        }
        Family::Qwen2 => put_layer_windows(map, decoder),
        Family::Qwen3 => {
            put("attention_bias", decoder.qkv_bias.into());
            put_layer_windows(map, decoder);
        }
        Family::Gpt2 => {}
    }
}

/// Qwen's sliding windows: `layer_types` for newer readers, `max_window_layers` for older ones.
fn put_layer_windows(map: &mut Map<String, Value>, decoder: &DecoderConfig) {
    let kind = |layer| match decoder.window(layer) {
        Some(_) => "sliding_attention",
        None => "full_attention",
    };
    let kinds: Vec<&str> = (0..decoder.num_hidden_layers).map(kind).collect();
    let window = decoder.sliding_window.as_ref();
    map.insert("use_sliding_window".into(), window.is_some().into());
    map.insert("layer_types".into(), kinds.into());
    match window {
        Some(SlidingWindow { size, layers }) => {
            map.insert("sliding_window".into(), (*size).into());
            map.insert("max_window_layers".into(), layers.first().copied().into());
        }
        None => {
            map.insert("sliding_window".into(), Value::Null);
        }
    }
}

fn put_labels(map: &mut Map<String, Value>, head: Head) {
    for key in ["num_labels", "id2label", "label2id"] {
        map.remove(key);
    }
    if head == Head::Score {
        map.insert("num_labels".into(), 1.into());
        map.insert("id2label".into(), json!({ "0": "LABEL_0" }));
        map.insert("label2id".into(), json!({ "LABEL_0": 0 }));
    }
}

fn put_tokens(map: &mut Map<String, Value>, decoder: &DecoderConfig, eos: &[u32]) {
    let eos = match eos {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    };
    map.insert("bos_token_id".into(), decoder.bos_token_id.into());
    map.insert("eos_token_id".into(), eos);
    map.insert("pad_token_id".into(), decoder.pad_token_id.into());
}

fn write_object(file: &Path, map: Map<String, Value>) -> Result<(), HfConfigError> {
    let object = Value::Object(map);
    Ok(replace_file(file, |out| writeln!(out, "{object:#}"))?)
}
