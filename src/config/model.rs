//! `[model]`: the model that the run starts from, a folder or an architecture to be initialised.
//!
//! Sizes of a model read from a folder stand in that folder's `config.json`, so `from` and the
//! architecture's keys exclude each other.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::{Checker, Keys};
use super::document::Document;
use super::error::ConfigError;
use super::optional_path;
use super::written::key_names;

/// What the `[model]` table means.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(into = "ModelTable")]
pub struct Model {
    /// Where the run's first model comes from; none if the table does not say (then every stage
    /// names its own).
    pub start: Option<ModelStart>,
    /// Number type of the weights in models that the run writes.
    pub save_dtype: SaveDtype,
}

/// Where the run's first model comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelStart {
    /// A Hugging Face folder.
    Folder(PathBuf),
    /// Random weights.
    Scratch(Architecture),
}

impl ModelStart {
    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            ModelStart::Folder(folder) => Some(folder),
            ModelStart::Scratch(_) => None,
        }
    }
}

/// Sizes of a decoder that is trained from scratch, every one known. Names are those of
/// `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Family of decoders.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding; none takes the tokenizer's size.
    pub vocab_size: Option<usize>,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies (unused by GPT-2).
    pub rope_theta: f64,
    /// Epsilon of the norms (of GPT-2's LayerNorm too).
    pub rms_norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Tokens that attention looks back; none is all.
    pub sliding_window: Option<usize>,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
}

/// Family of decoders, by the `model_type` of `config.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama; also SmolLM2 and TinyLlama.
    #[default]
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
    /// GPT-2.
    Gpt2,
}

/// Number type of written weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveDtype {
    /// 32 bits: exact.
    #[default]
    Float32,
    /// 16 bits, the exponent of `float32`.
    Bfloat16,
    /// 16 bits, IEEE half.
    Float16,
}

/// The `[model]` table as typed: every key may be missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ModelTable {
    #[serde(default, deserialize_with = "optional_path")]
    from: Option<PathBuf>,
    save_dtype: SaveDtype,
    family: Option<Family>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    rope_theta: Option<f64>,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    sliding_window: Option<usize>,
    initializer_range: Option<f64>,
}

impl ModelTable {
    /// Works out what the table means; what is wrong goes to `checker`, and the value is then not
    /// to be used.
    pub(super) fn lower(
        self,
        document: &Document,
        checker: &mut Checker<'_>,
    ) -> Result<Model, ConfigError> {
        let shape_keys: Vec<String> = key_names(&self)?
            .into_iter()
            .filter(|key| {
                !matches!(key.as_str(), "from" | "save_dtype") && document.typed("model", key)
            })
            .collect();
        let save_dtype = self.save_dtype;
        let mut keys = checker.table("model");
        let start = match &self.from {
            Some(folder) => {
                for key in &shape_keys {
                    keys.misplaced(
                        key,
                        "is read from model.from's config.json; remove this key or model.from",
                    );
                }
                Some(ModelStart::Folder(folder.clone()))
            }
            None if shape_keys.is_empty() => None,
            None => {
                let architecture = self.architecture(&mut keys);
                architecture.check(&mut keys);
                Some(ModelStart::Scratch(architecture))
            }
        };
        Ok(Model { start, save_dtype })
    }

    fn architecture(&self, keys: &mut Keys<'_, '_>) -> Architecture {
        let mut required_or = |key: &str, value: Option<usize>, stand_in: usize| {
            if value.is_none() {
                keys.missing(
                    key,
                    "a model from scratch needs it; or set model.from to start from a folder",
                );
            }
            value.unwrap_or(stand_in)
        };
        let heads = required_or("num_attention_heads", self.num_attention_heads, 1);
        // A missing width stands for one that fits the heads, so that it is reported once.
        let fitting = heads.saturating_mul(2);
        let hidden_size = required_or("hidden_size", self.hidden_size, fitting);
        let mut required = |key: &str, value: Option<usize>| required_or(key, value, 1);
        Architecture {
            family: self.family.unwrap_or_default(),
            hidden_size,
            intermediate_size: required("intermediate_size", self.intermediate_size),
            num_hidden_layers: required("num_hidden_layers", self.num_hidden_layers),
            num_attention_heads: heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(hidden_size / heads.max(1)),
            vocab_size: self.vocab_size,
            max_position_embeddings: required(
                "max_position_embeddings",
                self.max_position_embeddings,
            ),
            rope_theta: self.rope_theta.unwrap_or(10_000.0),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-5),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(true),
            sliding_window: self.sliding_window,
            initializer_range: self.initializer_range.unwrap_or(0.02),
        }
    }
}

impl Architecture {
    fn check(&self, keys: &mut Keys<'_, '_>) {
        let positive = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("vocab_size", self.vocab_size.unwrap_or(1)),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ];
        for (key, value) in positive {
            keys.at_least(key, value, 1, "a model cannot do without");
        }
        self.check_heads(keys);
        keys.above("rope_theta", self.rope_theta, 0.0, "10000 is usual");
        keys.above("rms_norm_eps", self.rms_norm_eps, 0.0, "1e-5 is usual");
        keys.above(
            "initializer_range",
            self.initializer_range,
            0.0,
            "0.02 is usual",
        );
    }

    fn check_heads(&self, keys: &mut Keys<'_, '_>) {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if heads == 0 || kv_heads == 0 {
            return;
        }
        if !heads.is_multiple_of(kv_heads) {
            let message = format!(
                "must divide model.num_attention_heads = {heads}; choose one of its divisors"
            );
            keys.wrong("num_key_value_heads", kv_heads, message);
        }
        let width = self.hidden_size;
        if self.family == Family::Gpt2 && self.head_dim.saturating_mul(heads) != width {
            let message =
                format!("GPT-2 needs num_attention_heads × head_dim = hidden_size = {width}");
            keys.wrong("num_attention_heads", heads, message);
        } else if self.family == Family::Llama && !width.is_multiple_of(heads) {
            // transformers refuses it even where head_dim is set.
            let message = format!(
                "a llama needs a multiple of model.num_attention_heads = {heads}; change one of the two, or choose \
                 family = \"mistral\" and set head_dim"
            );
            keys.wrong("hidden_size", width, message);
        } else if self.head_dim < 2 || !self.head_dim.is_multiple_of(2) {
            let message = "rotary embeddings need an even head size; choose hidden_size = num_attention_heads × an even \
                           number, or set head_dim";
            keys.wrong("head_dim", self.head_dim, message);
        }
    }
}

impl From<Model> for ModelTable {
    fn from(model: Model) -> Self {
        let table = Self {
            save_dtype: model.save_dtype,
            ..Self::default()
        };
        match model.start {
            None => table,
            Some(ModelStart::Folder(folder)) => Self {
                from: Some(folder),
                ..table
            },
            Some(ModelStart::Scratch(architecture)) => Self {
                family: Some(architecture.family),
                hidden_size: Some(architecture.hidden_size),
                intermediate_size: Some(architecture.intermediate_size),
                num_hidden_layers: Some(architecture.num_hidden_layers),
                num_attention_heads: Some(architecture.num_attention_heads),
                num_key_value_heads: Some(architecture.num_key_value_heads),
                head_dim: Some(architecture.head_dim),
                vocab_size: architecture.vocab_size,
                max_position_embeddings: Some(architecture.max_position_embeddings),
                rope_theta: Some(architecture.rope_theta),
                rms_norm_eps: Some(architecture.rms_norm_eps),
                tie_word_embeddings: Some(architecture.tie_word_embeddings),
                sliding_window: architecture.sliding_window,
                initializer_range: Some(architecture.initializer_range),
                ..table
            },
        }
    }
}
