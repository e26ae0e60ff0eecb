//! The architecture of a decoder: one description that covers Llama (also SmolLM2, TinyLlama, Llama
//! 3), Mistral, Qwen2, Qwen3 and GPT-2.
//!
//! Field names are those of a Hugging Face `config.json`. The families differ only in the values of
//! these fields and in the names of their tensors ([`Family::names`]); layers do not depend on the
//! family. [`super::hf_config`] reads and writes `config.json`.

mod names;
mod tensors;
mod validate;

pub use names::{
    LM_HEAD, ModuleNames, SCORE, StoredLayout, is_embedding, layer_of, weight, without_trunk,
};
pub use tensors::{Init, TensorSpec};
pub use validate::InvalidDecoder;

pub use crate::config::Family;

/// Conventions of a family: names of classes and tensors, keys of `config.json`.
impl Family {
    /// The transformers class of a model with this head, as written in `architectures`.
    pub fn architecture(self, head: Head) -> &'static str {
        match (self, head) {
            (Family::Llama, Head::LanguageModel) => "LlamaForCausalLM",
            (Family::Llama, Head::Score) => "LlamaForSequenceClassification",
            (Family::Mistral, Head::LanguageModel) => "MistralForCausalLM",
            (Family::Mistral, Head::Score) => "MistralForSequenceClassification",
            (Family::Qwen2, Head::LanguageModel) => "Qwen2ForCausalLM",
            (Family::Qwen2, Head::Score) => "Qwen2ForSequenceClassification",
            (Family::Qwen3, Head::LanguageModel) => "Qwen3ForCausalLM",
            (Family::Qwen3, Head::Score) => "Qwen3ForSequenceClassification",
            (Family::Gpt2, Head::LanguageModel) => "GPT2LMHeadModel",
            (Family::Gpt2, Head::Score) => "GPT2ForSequenceClassification",
        }
    }

    /// The transformers class of the decoder without a head.
    pub fn base_architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaModel",
            Family::Mistral => "MistralModel",
            Family::Qwen2 => "Qwen2Model",
            Family::Qwen3 => "Qwen3Model",
            Family::Gpt2 => "GPT2Model",
        }
    }

    /// The `config.json` key of the field `name` of [`DecoderConfig`]; GPT-2 has its own names for
    /// some.
    pub fn config_key(self, name: &'static str) -> &'static str {
        if self != Family::Gpt2 {
            return name;
        }
        match name {
            "hidden_size" => "n_embd",
            "intermediate_size" => "n_inner",
            "num_hidden_layers" => "n_layer",
            "num_attention_heads" => "n_head",
            "max_position_embeddings" => "n_positions",
            "hidden_act" => "activation_function",
            "rms_norm_eps" => "layer_norm_epsilon",
            same => same,
        }
    }
}

/// The normalisation before each sub-layer and before the head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NormKind {
    /// RMSNorm (Zhang and Sennrich 2019, eq. 4): scale, no shift.
    Rms {
        /// Added to the mean square.
        eps: f64,
    },
    /// LayerNorm (Ba et al. 2016, eq. 4): scale and shift.
    Layer {
        /// Added to the variance.
        eps: f64,
    },
}

/// Encoding of token positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Position {
    /// Rotary embedding of queries and keys (Su et al. 2021, eq. 34), in the half-split layout of
    /// Hugging Face weights.
    Rope(RopeConfig),
    /// One learned vector for each position, added to the token embedding.
    Learned,
}

/// Frequencies of the rotary embedding: `theta^(-2i/head_dim)` for pair i, then scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling to longer contexts.
    pub scaling: RopeScaling,
}

/// Scaling of the rotary frequencies to contexts longer than that of pre-training.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum RopeScaling {
    /// The frequencies are not scaled.
    #[default]
    None,
    /// Every frequency divided by `factor` (Chen et al. 2023, position interpolation).
    Linear {
        /// Divisor of every frequency.
        factor: f64,
    },
    /// Llama 3.1: wavelengths above `original_max_position_embeddings / low_freq_factor` are
    /// stretched by `factor`, those below `original_max_position_embeddings / high_freq_factor`
    /// kept, those between interpolated.
    Llama3 {
        /// Divisor of the lowest frequencies.
        factor: f64,
        /// Wavelengths of the original context divided by this are the shortest that are fully
        /// scaled.
        low_freq_factor: f64,
        /// Wavelengths of the original context divided by this are the longest that are not scaled.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_position_embeddings: usize,
    },
}

/// The feed-forward sub-layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `down(silu(gate(x)) * up(x))` (Shazeer 2020, eq. 6).
    SwiGlu,
    /// Two projections with GELU in its tanh approximation (Hendrycks and Gimpel 2016, section 2),
    /// `gelu_new`.
    GeluTanh,
    /// Two projections with GELU by the error function.
    Gelu,
}

/// Normalisation of queries and keys before the rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Queries and keys are not normalised.
    Absent,
    /// RMSNorm over the `head_dim` values of each head, one scale shared by all heads (Qwen3).
    PerHead,
}

/// Attention limited to recent tokens, in some of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// A query sees itself and the `size - 1` tokens before it.
    pub size: usize,
    /// The layers that are limited, ascending.
    pub layers: Vec<usize>,
}

/// The head on top of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Logits over the vocabulary: `lm_head.weight` [vocab_size, hidden_size], or the embedding
    /// itself when tied.
    LanguageModel,
    /// One number per token: `score.weight` [1, hidden_size].
    Score,
}

/// The description of a decoder. Sizes count elements; a projection's weight is [out, in].
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Family, which fixes the tensor names.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward sub-layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads (grouped-query attention, Ainslie et al. 2023), a divisor of
    /// `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; not always `hidden_size / num_attention_heads` (Qwen3).
    pub head_dim: usize,
    /// Number of rows of the embedding.
    pub vocab_size: usize,
    /// Context length in tokens.
    pub max_position_embeddings: usize,
    /// Normalisation of the residual stream.
    pub norm: NormKind,
    /// Encoding of token positions.
    pub position: Position,
    /// Kind of the feed-forward sub-layer.
    pub activation: Activation,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Normalisation of queries and keys.
    pub qk_norm: QkNorm,
    /// Layers with limited attention; `None` if every layer attends to the whole segment.
    pub sliding_window: Option<SlidingWindow>,
    /// Whether the language-model head is the token embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// Token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence, from `config.json`; generation stops at
    /// [`HfConfig::stop_ids`](super::hf_config::HfConfig::stop_ids).
    pub eos_token_ids: Vec<u32>,
    /// Token that pads sequences.
    pub pad_token_id: Option<u32>,
    /// Head on top of the decoder.
    pub head: Head,
}

/// Sizes of a decoder made from scratch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward sub-layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head; `None` divides `hidden_size` among the heads.
    pub head_dim: Option<usize>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Context length in tokens.
    pub max_position_embeddings: usize,
}

impl DecoderConfig {
    /// A new decoder of `family` with that family's usual choices: a language model with tied
    /// embeddings, rotary base 10000, norm epsilon 1e-5, weights drawn with deviation 0.02, full
    /// attention, no special tokens. Change fields as needed, then [`validate`](Self::validate).
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub fn from_scratch(family: Family, sizes: &Geometry) -> Result<Self, InvalidDecoder> {
        let base = DecoderConfig::plain(family, sizes);
        let config = match family {
            Family::Llama | Family::Mistral => base,
            Family::Qwen2 => DecoderConfig {
                qkv_bias: true,
                ..base
            },
            Family::Qwen3 => DecoderConfig {
                qk_norm: QkNorm::PerHead,
                ..base
            },
            Family::Gpt2 => DecoderConfig {
                norm: NormKind::Layer { eps: 1e-5 },
                position: Position::Learned,
                activation: Activation::GeluTanh,
                qkv_bias: true,
                output_bias: true,
                mlp_bias: true,
                ..base
            },
        };
        config.check_sizes()?;
        if sizes.head_dim.is_none() {
            config.check_multiple(
                ("hidden_size", config.hidden_size),
                ("num_attention_heads", config.num_attention_heads),
            )?;
        }
        config.validate()?;
        Ok(config)
    }

    /// The common shape of the families: Llama's, without biases.
    fn plain(family: Family, sizes: &Geometry) -> Self {
        DecoderConfig {
            family,
            hidden_size: sizes.hidden_size,
            intermediate_size: sizes.intermediate_size,
            num_hidden_layers: sizes.num_hidden_layers,
            num_attention_heads: sizes.num_attention_heads,
            num_key_value_heads: sizes.num_key_value_heads,
            head_dim: sizes
                .head_dim
                .unwrap_or(sizes.hidden_size / sizes.num_attention_heads.max(1)),
            vocab_size: sizes.vocab_size,
            max_position_embeddings: sizes.max_position_embeddings,
            norm: NormKind::Rms { eps: 1e-5 },
            position: Position::Rope(RopeConfig {
                theta: 10_000.0,
                scaling: RopeScaling::None,
            }),
            activation: Activation::SwiGlu,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: QkNorm::Absent,
            sliding_window: None,
            tie_word_embeddings: true,
            initializer_range: 0.02,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
            head: Head::LanguageModel,
        }
    }

    /// Number of outputs of the query projection: `num_attention_heads * head_dim`.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Number of outputs of the key projection, and of the value projection: `num_key_value_heads *
    /// head_dim`.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Number of tokens, itself included, that a query of `layer` sees; `None` for all tokens.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window
            .as_ref()
            .filter(|window| window.layers.binary_search(&layer).is_ok())
            .map(|window| window.size)
    }
}

#[cfg(test)]
mod tests;
