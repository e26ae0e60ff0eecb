//! `[model]`: the model that the run starts from, a folder or an architecture to be initialised.
//!
//! The sizes of a model in a folder are in its `config.json`, so `from` and the keys of an
//! architecture exclude each other.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::{Checker, Keys};
use super::document::Document;
use super::error::ConfigError;
use super::optional_path;
use super::words::word;
use super::written::key_names;

/// Defaults of keys that may be unset.
const ROPE_THETA: f64 = 10_000.0;
const RMS_NORM_EPS: f64 = 1e-5;
const TIE_WORD_EMBEDDINGS: bool = true;
const INITIALIZER_RANGE: f64 = 0.02;

/// The model that the run starts from, as `[model]` describes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(into = "ModelTable")]
pub struct ModelConfig {
    /// The run's first model; `None` if the table has neither `from` nor sizes, and every stage
    /// names its own.
    pub start: Option<ModelStart>,
    /// Number type of the weights in the model folders that the run writes.
    pub save_dtype: SaveDtype,
}

/// The run's first model.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelStart {
    /// Read from a Hugging Face folder.
    Folder(PathBuf),
    /// Initialised with random weights.
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

/// Architecture of a model that is initialised. Names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Architecture, by the `model_type` of `config.json`.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward blocks.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads, a divisor of the number of query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Number of rows of the embedding; `None` takes the tokenizer's size.
    pub vocab_size: Option<usize>,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies (unused by GPT-2).
    pub rope_theta: f64,
    /// Epsilon of the norms (of GPT-2's LayerNorm too).
    pub rms_norm_eps: f64,
    /// Whether the output head shares its weights with the embedding.
    pub tie_word_embeddings: bool,
    /// Number of preceding tokens that a token attends to; `None` attends to all.
    pub sliding_window: Option<usize>,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
}

/// Family of decoders, by the `model_type` of `config.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama, SmolLM2 and TinyLlama.
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

impl Family {
    /// All families, in the order in which messages list them.
    pub const ALL: [Self; 5] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gpt2,
    ];
}

impl fmt::Display for Family {
    /// The word of the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&word(self))
    }
}

/// Number type of written weights.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum SaveDtype {
    /// 32 bits, exactly the trained weights.
    #[default]
    Float32,
    /// 16 bits with the exponent range of `float32`, rounded.
    Bfloat16,
    /// 16 bits (IEEE half precision), rounded.
    Float16,
}

impl fmt::Display for SaveDtype {
    /// The word of the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&word(self))
    }
}

/// The model that the run starts from: a Hugging Face folder, or sizes of a model to initialise.
///
/// `from` and the sizes exclude each other. Names of the sizes are those of `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct ModelTable {
    /// Hugging Face folder of the model to start from.
    ///
    /// Built with the feature `hub`, also `OWNER/NAME` or `OWNER/NAME@REVISION` on the Hugging
    /// Face hub.
    #[schemars(extend("x-type" = "path"))]
    #[serde(default, deserialize_with = "optional_path")]
    from: Option<PathBuf>,
    /// Number type of the weights in the model folders that the run writes.
    save_dtype: SaveDtype,
    /// Architecture of a model that is initialised, by the `model_type` of `config.json`.
    #[schemars(extend("x-default" = format!("`\"{}\"`", Family::default())))]
    family: Option<Family>,
    /// Width of the residual stream.
    #[schemars(extend("x-default" = "required without `from`"))]
    hidden_size: Option<usize>,
    /// Width of the feed-forward blocks.
    #[schemars(extend("x-default" = "required without `from`"))]
    intermediate_size: Option<usize>,
    /// Number of layers.
    #[schemars(extend("x-default" = "required without `from`"))]
    num_hidden_layers: Option<usize>,
    /// Number of query heads in each layer.
    #[schemars(extend("x-default" = "required without `from`"))]
    num_attention_heads: Option<usize>,
    /// Number of key and value heads in each layer, a divisor of `num_attention_heads`.
    #[schemars(extend("x-default" = "`num_attention_heads`"))]
    num_key_value_heads: Option<usize>,
    /// Width of one attention head.
    #[schemars(extend("x-default" = "`hidden_size / num_attention_heads`"))]
    head_dim: Option<usize>,
    /// Number of rows of the embedding.
    #[schemars(extend("x-default" = "the tokenizer's size"))]
    vocab_size: Option<usize>,
    /// Longest sequence in tokens.
    #[schemars(extend("x-default" = "required without `from`"))]
    max_position_embeddings: Option<usize>,
    /// Base of the rotary frequencies; GPT-2 has none.
    #[schemars(extend("x-default" = ROPE_THETA))]
    rope_theta: Option<f64>,
    /// Epsilon of the norm layers, GPT-2's LayerNorm included.
    #[schemars(extend("x-default" = RMS_NORM_EPS))]
    rms_norm_eps: Option<f64>,
    /// Whether the output head shares its weights with the embedding.
    #[schemars(extend("x-default" = TIE_WORD_EMBEDDINGS))]
    tie_word_embeddings: Option<bool>,
    /// Number of preceding tokens that a token attends to; unset attends to all.
    sliding_window: Option<usize>,
    /// Standard deviation of the initial weights.
    #[schemars(extend("x-default" = INITIALIZER_RANGE))]
    initializer_range: Option<f64>,
}

impl ModelTable {
    /// The model that the table describes. Problems are reported to `checker`; the value must then
    /// not be used.
    pub(super) fn lower(
        self,
        document: &Document,
        checker: &mut Checker<'_>,
    ) -> Result<ModelConfig, ConfigError> {
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
        Ok(ModelConfig { start, save_dtype })
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
        // A missing width is replaced by one that fits the heads, so that only the missing key is
        // reported.
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
            rope_theta: self.rope_theta.unwrap_or(ROPE_THETA),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(RMS_NORM_EPS),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(TIE_WORD_EMBEDDINGS),
            sliding_window: self.sliding_window,
            initializer_range: self.initializer_range.unwrap_or(INITIALIZER_RANGE),
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
            keys.at_least(key, value, 1, "a model needs one");
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
            // transformers refuses it even if head_dim is set.
            let message = format!(
                "must be a multiple of model.num_attention_heads = {heads} in a llama; change one \
                 of them, or set family = \"mistral\" and head_dim"
            );
            keys.wrong("hidden_size", width, message);
        } else if self.head_dim < 2 || !self.head_dim.is_multiple_of(2) {
            let message = "must be even for rotary embeddings; set head_dim, or hidden_size to \
                           num_attention_heads × an even number";
            keys.wrong("head_dim", self.head_dim, message);
        }
    }
}

impl From<ModelConfig> for ModelTable {
    fn from(model: ModelConfig) -> Self {
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
