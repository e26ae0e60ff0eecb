//! The tensors of a decoder: their Hugging Face names, shapes and initial values, in the order in
//! which the model reads them.
//!
//! Shapes are the engine's: a projection is [out, in]. GPT-2's checkpoints hold their projections
//! as [in, out] (`Conv1D` in transformers); [`StoredLayout`] marks them, and
//! [`crate::model::weights`] transposes them on reading and writing.

use super::names::{LM_HEAD, ModuleNames, SCORE, StoredLayout};
use super::{DecoderConfig, Family, Head, NormKind, QkNorm};

/// Initial values of a tensor that no checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Independent draws around zero with deviation `std`.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Independent draws between −`bound` and `bound`.
    Uniform {
        /// Largest absolute value.
        bound: f64,
    },
    /// All elements are 1.
    Ones,
    /// All elements are 0.
    Zeros,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// The name in a Hugging Face checkpoint; also the parameter's name in the engine.
    pub name: String,
    /// The shape in the engine; a projection is [out, in].
    pub shape: Vec<usize>,
    /// Layout in the file.
    pub layout: StoredLayout,
    /// Initial values in a model made from scratch.
    pub init: Init,
}

impl TensorSpec {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// The shape in the file: reversed for [`StoredLayout::Conv1d`].
    pub fn stored_shape(&self) -> Vec<usize> {
        match self.layout {
            StoredLayout::OutIn => self.shape.clone(),
            StoredLayout::Conv1d => self.shape.iter().rev().copied().collect(),
        }
    }
}

impl DecoderConfig {
    /// Every tensor of the model, in the order of the forward pass: embeddings, layers, final norm,
    /// head. A tied head is not listed, and neither are buffers that transformers once saved
    /// (masks, rotary tables).
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut list = TensorList {
            config: self,
            names: self.family.names(),
            specs: Vec::new(),
        };
        list.embeddings();
        for layer in 0..self.num_hidden_layers {
            list.layer(&format!("{}.{layer}", list.names.layers));
        }
        list.norm(list.names.norm, self.hidden_size);
        list.head();
        list.specs
    }
}

struct TensorList<'a> {
    config: &'a DecoderConfig,
    names: &'static ModuleNames,
    specs: Vec<TensorSpec>,
}

impl TensorList<'_> {
    fn embeddings(&mut self) {
        let c = self.config;
        self.matrix(self.names.embedding, [c.vocab_size, c.hidden_size]);
        if let Some(positions) = self.names.positions {
            self.matrix(positions, [c.max_position_embeddings, c.hidden_size]);
        }
    }

    fn layer(&mut self, layer: &str) {
        let (c, names) = (self.config, self.names);
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let (inside, residual) = (c.initializer_range, self.residual_std());
        let module = |name: &str| format!("{layer}.{name}");
        self.norm(&module(names.attention_norm), hidden);
        for (name, out) in names.qkv.iter().zip(self.qkv_sizes()) {
            self.linear(&module(name), [out, hidden], inside, c.qkv_bias);
        }
        if c.qk_norm == QkNorm::PerHead {
            let norms = names.qk_norm.iter();
            norms.for_each(|name| self.norm(&module(name), c.head_dim));
        }
        let output = [hidden, c.query_size()];
        self.linear(&module(names.output), output, residual, c.output_bias);
        self.norm(&module(names.mlp_norm), hidden);
        for name in names.up {
            self.linear(&module(name), [inner, hidden], inside, c.mlp_bias);
        }
        let down = [hidden, inner];
        self.linear(&module(names.down), down, residual, c.mlp_bias);
    }

    /// Number of outputs of each projection to queries, keys and values.
    fn qkv_sizes(&self) -> Vec<usize> {
        let (query, key_value) = (self.config.query_size(), self.config.key_value_size());
        match self.names.qkv {
            [_stacked] => vec![query + 2 * key_value],
            _ => vec![query, key_value, key_value],
        }
    }

    /// GPT-2's projections into the residual stream start smaller, by one over the root of their
    /// number (Radford et al. 2019, section 2.3).
    fn residual_std(&self) -> f64 {
        let c = self.config;
        match c.family {
            Family::Gpt2 => c.initializer_range / (2.0 * c.num_hidden_layers as f64).sqrt(),
            _ => c.initializer_range,
        }
    }

    fn head(&mut self) {
        let c = self.config;
        match c.head {
            Head::Score => self.score(c.hidden_size),
            Head::LanguageModel if c.tie_word_embeddings => {}
            Head::LanguageModel => self.matrix(LM_HEAD, [c.vocab_size, c.hidden_size]),
        }
    }

    /// The scalar head starts at N(0, 1/sqrt(d + 1)) (Stiennon et al. 2020, by their code).
    fn score(&mut self, hidden: usize) {
        let std = 1.0 / ((hidden + 1) as f64).sqrt();
        let init = Init::Normal { std };
        self.push(SCORE, "weight", &[1, hidden], StoredLayout::OutIn, init);
    }

    fn matrix(&mut self, module: &str, shape: [usize; 2]) {
        let std = self.config.initializer_range;
        self.push(
            module,
            "weight",
            &shape,
            StoredLayout::OutIn,
            Init::Normal { std },
        );
    }

    fn linear(&mut self, module: &str, shape: [usize; 2], std: f64, bias: bool) {
        let layout = self.names.projections;
        self.push(module, "weight", &shape, layout, Init::Normal { std });
        if bias {
            self.push(
                module,
                "bias",
                &shape[..1],
                StoredLayout::OutIn,
                Init::Zeros,
            );
        }
    }

    fn norm(&mut self, module: &str, size: usize) {
        self.push(module, "weight", &[size], StoredLayout::OutIn, Init::Ones);
        if matches!(self.config.norm, NormKind::Layer { .. }) {
            self.push(module, "bias", &[size], StoredLayout::OutIn, Init::Zeros);
        }
    }

    fn push(
        &mut self,
        module: &str,
        leaf: &str,
        shape: &[usize],
        layout: StoredLayout,
        init: Init,
    ) {
        self.specs.push(TensorSpec {
            name: format!("{module}.{leaf}"),
            shape: shape.to_vec(),
            layout,
            init,
        });
    }
}
