//! The tensors of a decoder: their Hugging Face names, shapes and initial values, in the order in which the model reads them.
//!
//! Shapes are the engine's: a projection is [out, in]. GPT-2's checkpoints hold their projections as [in, out]
//! (`Conv1D` in transformers); [`Layout`] says so, and [`crate::model::weights`] turns them over on the way in and out.

use super::{DecoderConfig, Family, Head, Norm, QkNorm};

/// How a matrix lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As in the engine.
    OutIn,
    /// Transposed: [in, out], GPT-2's `Conv1D`.
    Conv1d,
}

/// The value that a tensor starts from when no checkpoint has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Independent draws around zero with deviation `std`.
    Normal {
        std: f64,
    },
    Ones,
    Zeros,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// The name in a Hugging Face checkpoint; also the parameter's name in the engine.
    pub name: String,
    /// The shape in the engine; a projection is [out, in].
    pub shape: Vec<usize>,
    /// How the file holds it.
    pub layout: Layout,
    /// What it is drawn from in a model made from scratch.
    pub init: Init,
}

impl TensorSpec {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// The shape in the file: reversed for [`Layout::Conv1d`].
    pub fn stored_shape(&self) -> Vec<usize> {
        match self.layout {
            Layout::OutIn => self.shape.clone(),
            Layout::Conv1d => self.shape.iter().rev().copied().collect(),
        }
    }
}

impl DecoderConfig {
    /// Every tensor of the model, in the order of the forward pass: embeddings, layers, final norm, head.
    /// A tied head is not listed, and neither are buffers that transformers once saved (masks, rotary tables).
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut list = TensorList {
            config: self,
            specs: Vec::new(),
        };
        match self.family {
            Family::Gpt2 => list.gpt2(),
            _ => list.llama(),
        }
        list.head();
        list.specs
    }

    /// Number of trainable values: the sum over [`tensors`](Self::tensors).
    pub fn num_parameters(&self) -> usize {
        self.tensors().iter().map(TensorSpec::numel).sum()
    }
}

struct TensorList<'a> {
    config: &'a DecoderConfig,
    specs: Vec<TensorSpec>,
}

impl TensorList<'_> {
    /// Names and order of Llama, Mistral, Qwen2 and Qwen3.
    fn llama(&mut self) {
        let c = self.config;
        self.matrix("model.embed_tokens", [c.vocab_size, c.hidden_size]);
        for layer in 0..c.num_hidden_layers {
            self.llama_layer(&format!("model.layers.{layer}"));
        }
        self.norm("model.norm", c.hidden_size);
    }

    fn llama_layer(&mut self, layer: &str) {
        let c = self.config;
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let (query, key_value) = (c.query_size(), c.key_value_size());
        let attention = format!("{layer}.self_attn");
        self.norm(&format!("{layer}.input_layernorm"), hidden);
        for (name, out) in [("q", query), ("k", key_value), ("v", key_value)] {
            self.linear(
                &format!("{attention}.{name}_proj"),
                [out, hidden],
                c.qkv_bias,
            );
        }
        if c.qk_norm == QkNorm::PerHead {
            self.norm(&format!("{attention}.q_norm"), c.head_dim);
            self.norm(&format!("{attention}.k_norm"), c.head_dim);
        }
        self.linear(
            &format!("{attention}.o_proj"),
            [hidden, query],
            c.output_bias,
        );
        self.norm(&format!("{layer}.post_attention_layernorm"), hidden);
        for (name, shape) in [
            ("gate", [inner, hidden]),
            ("up", [inner, hidden]),
            ("down", [hidden, inner]),
        ] {
            self.linear(&format!("{layer}.mlp.{name}_proj"), shape, c.mlp_bias);
        }
    }

    fn gpt2(&mut self) {
        let c = self.config;
        self.matrix("transformer.wte", [c.vocab_size, c.hidden_size]);
        self.matrix(
            "transformer.wpe",
            [c.max_position_embeddings, c.hidden_size],
        );
        for layer in 0..c.num_hidden_layers {
            self.gpt2_layer(&format!("transformer.h.{layer}"));
        }
        self.norm("transformer.ln_f", c.hidden_size);
    }

    /// `c_attn` is the query, key and value projections stacked along the outputs, in this order.
    fn gpt2_layer(&mut self, layer: &str) {
        let c = self.config;
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        // Projections into the residual stream start smaller, by one over the root of their number
        // (Radford et al. 2019, section 2.3).
        let residual = c.initializer_range / (2.0 * c.num_hidden_layers as f64).sqrt();
        self.norm(&format!("{layer}.ln_1"), hidden);
        self.conv1d(
            &format!("{layer}.attn.c_attn"),
            [3 * hidden, hidden],
            c.initializer_range,
        );
        self.conv1d(&format!("{layer}.attn.c_proj"), [hidden, hidden], residual);
        self.norm(&format!("{layer}.ln_2"), hidden);
        self.conv1d(
            &format!("{layer}.mlp.c_fc"),
            [inner, hidden],
            c.initializer_range,
        );
        self.conv1d(&format!("{layer}.mlp.c_proj"), [hidden, inner], residual);
    }

    fn head(&mut self) {
        let c = self.config;
        match c.head {
            Head::Score => self.score(c.hidden_size),
            Head::LanguageModel if c.tie_word_embeddings => {}
            Head::LanguageModel => self.matrix("lm_head", [c.vocab_size, c.hidden_size]),
        }
    }

    /// The scalar head starts at N(0, 1/sqrt(d + 1)) (Stiennon et al. 2020, as their code has it).
    fn score(&mut self, hidden: usize) {
        let std = 1.0 / ((hidden + 1) as f64).sqrt();
        let init = Init::Normal { std };
        self.push("score", "weight", &[1, hidden], Layout::OutIn, init);
    }

    fn matrix(&mut self, module: &str, shape: [usize; 2]) {
        let std = self.config.initializer_range;
        self.push(
            module,
            "weight",
            &shape,
            Layout::OutIn,
            Init::Normal { std },
        );
    }

    fn linear(&mut self, module: &str, shape: [usize; 2], bias: bool) {
        self.matrix(module, shape);
        if bias {
            self.push(module, "bias", &shape[..1], Layout::OutIn, Init::Zeros);
        }
    }

    fn conv1d(&mut self, module: &str, shape: [usize; 2], std: f64) {
        self.push(
            module,
            "weight",
            &shape,
            Layout::Conv1d,
            Init::Normal { std },
        );
        self.push(module, "bias", &shape[..1], Layout::OutIn, Init::Zeros);
    }

    fn norm(&mut self, module: &str, size: usize) {
        self.push(module, "weight", &[size], Layout::OutIn, Init::Ones);
        if matches!(self.config.norm, Norm::Layer { .. }) {
            self.push(module, "bias", &[size], Layout::OutIn, Init::Zeros);
        }
    }

    fn push(&mut self, module: &str, leaf: &str, shape: &[usize], layout: Layout, init: Init) {
        self.specs.push(TensorSpec {
            name: format!("{module}.{leaf}"),
            shape: shape.to_vec(),
            layout,
            init,
        });
    }
}
