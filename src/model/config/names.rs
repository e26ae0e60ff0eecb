//! Names of a decoder's modules in the Hugging Face checkpoints of each family, and functions of a
//! tensor's name.
//!
//! A tensor's name is that of its module, then `.weight` or `.bias`.

use super::Family;

/// The scalar head of a reward model, in every family.
pub const SCORE: &str = "score";
/// The head of a language model that is not tied, in every family.
pub const LM_HEAD: &str = "lm_head";

/// Layout of a matrix in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredLayout {
    /// [out, in], the engine's own layout.
    OutIn,
    /// Transposed: [in, out], GPT-2's `Conv1D`.
    Conv1d,
}

/// Names of a family's modules. Modules of a layer are prefixed by `layers` and the layer's number.
#[derive(Debug)]
pub struct ModuleNames {
    /// Prefix of all names but the heads'; a checkpoint of the bare decoder lacks it.
    pub trunk: &'static str,
    /// The token embedding.
    pub embedding: &'static str,
    /// The learned position embedding, if the family has one.
    pub positions: Option<&'static str>,
    /// Prefix of a layer's number.
    pub layers: &'static str,
    /// The norm before attention.
    pub attention_norm: &'static str,
    /// The projections to queries, keys and values, or one projection with all three stacked along
    /// the outputs in this order.
    pub qkv: &'static [&'static str],
    /// The norms of query and key heads, if the family has them.
    pub qk_norm: &'static [&'static str],
    /// The projection out of attention.
    pub output: &'static str,
    /// The norm before the feed-forward sub-layer.
    pub mlp_norm: &'static str,
    /// The input projections of the feed-forward sub-layer: gate and up, or up alone.
    pub up: &'static [&'static str],
    /// The output projection of the feed-forward sub-layer.
    pub down: &'static str,
    /// The norm before the head.
    pub norm: &'static str,
    /// Layout of a layer's projections in the file.
    pub projections: StoredLayout,
}

const LLAMA: ModuleNames = ModuleNames {
    trunk: "model",
    embedding: "model.embed_tokens",
    positions: None,
    layers: "model.layers",
    attention_norm: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    qk_norm: &["self_attn.q_norm", "self_attn.k_norm"],
    output: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    norm: "model.norm",
    projections: StoredLayout::OutIn,
};

const GPT2: ModuleNames = ModuleNames {
    trunk: "transformer",
    embedding: "transformer.wte",
    positions: Some("transformer.wpe"),
    layers: "transformer.h",
    attention_norm: "ln_1",
    qkv: &["attn.c_attn"],
    qk_norm: &[],
    output: "attn.c_proj",
    mlp_norm: "ln_2",
    up: &["mlp.c_fc"],
    down: "mlp.c_proj",
    norm: "transformer.ln_f",
    projections: StoredLayout::Conv1d,
};

const TABLES: [&ModuleNames; 2] = [&LLAMA, &GPT2];

impl Family {
    /// Names of the family's modules.
    pub fn names(self) -> &'static ModuleNames {
        match self {
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => &LLAMA,
            Family::Gpt2 => &GPT2,
        }
    }
}

/// The name of a module's weight.
pub fn weight(module: &str) -> String {
    format!("{module}.weight")
}

/// The layer that a tensor belongs to; `None` outside the layers.
pub fn layer_of(name: &str) -> Option<usize> {
    let inside = |names: &&ModuleNames| after(name, names.layers);
    TABLES
        .iter()
        .find_map(inside)?
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// Whether a tensor is a token or position embedding.
pub fn is_embedding(name: &str) -> bool {
    let modules = |names: &&ModuleNames| [Some(names.embedding), names.positions];
    TABLES
        .iter()
        .flat_map(modules)
        .flatten()
        .any(|module| after(name, module).is_some())
}

/// A tensor's name in a checkpoint of the bare decoder; `None` for a head.
pub fn without_trunk(name: &str) -> Option<&str> {
    TABLES.iter().find_map(|names| after(name, names.trunk))
}

/// The part of `name` after `module` and a dot.
fn after<'n>(name: &'n str, module: &str) -> Option<&'n str> {
    name.strip_prefix(module)?.strip_prefix('.')
}
