//! Low-rank adapters (LoRA: Hu et al. 2021): the adapted modules of a decoder, and their tensors.
//!
//! An adapted projection is `W · x + scale · B · A · x` with a frozen `W`. Names and defaults are
//! those of Hugging Face's PEFT, whose folders [`folder`] reads and writes. Left out: dropout,
//! biases, adapters of embeddings and heads.

mod continued;
mod error;
pub mod folder;
mod merge;
mod resolve;
mod stored;

use super::config::{DecoderConfig, Init, StoredLayout, TensorSpec, layer_of};

pub use error::LoraError;
pub use merge::merged;
pub use stored::{AdaptedFolder, StoredModel};

/// Suffix of a weight's name.
const WEIGHT: &str = ".weight";

/// A projection that has an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdaptedModule {
    /// Name in the checkpoint, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Width of the projection's result.
    pub outputs: usize,
    /// Width of the projection's input.
    pub inputs: usize,
}

/// The adapters of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Whether the denominator of the scale is √r (Kalajdzievski 2023, section 3) instead of r (Hu
    /// et al. 2021, section 4.1).
    pub use_rslora: bool,
    /// The adapted projections, in the order of the forward pass.
    pub modules: Vec<AdaptedModule>,
}

impl Lora {
    /// Factor of the product of the two matrices.
    pub fn scale(&self) -> f32 {
        let r = self.r as f64;
        let denominator = if self.use_rslora { r.sqrt() } else { r };
        (self.lora_alpha / denominator) as f32
    }

    /// The lowest layer that has an adapter.
    pub fn lowest_layer(&self) -> Option<usize> {
        self.modules.iter().filter_map(|m| layer_of(&m.name)).min()
    }

    /// Whether a projection has an adapter.
    pub fn adapts(&self, module: &str) -> bool {
        self.modules.iter().any(|m| m.name == module)
    }

    /// Tensors of all adapters. `A` is drawn as in PEFT (Kaiming uniform with a = √5: uniform
    /// between ±1/√inputs) and `B` is zero, so that a fresh adapter does not change the model.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let of = |module: &AdaptedModule| {
            let bound = 1.0 / (module.inputs as f64).sqrt();
            let spec = |name, shape, init| TensorSpec {
                name,
                shape,
                layout: StoredLayout::OutIn,
                init,
            };
            [
                spec(
                    a_of(&module.name),
                    vec![self.r, module.inputs],
                    Init::Uniform { bound },
                ),
                spec(
                    b_of(&module.name),
                    vec![module.outputs, self.r],
                    Init::Zeros,
                ),
            ]
        };
        self.modules.iter().flat_map(of).collect()
    }
}

/// The name of a module's first matrix, `[r, inputs]`.
pub fn a_of(module: &str) -> String {
    format!("{module}.lora_A.weight")
}

/// The name of a module's second matrix, `[outputs, r]`.
pub fn b_of(module: &str) -> String {
    format!("{module}.lora_B.weight")
}

/// All projections of the layers.
pub fn projections(decoder: &DecoderConfig) -> Vec<AdaptedModule> {
    let module = |spec: TensorSpec| {
        layer_of(&spec.name)?;
        let &[outputs, inputs] = &spec.shape[..] else {
            return None;
        };
        let name = spec.name.strip_suffix(WEIGHT)?.to_owned();
        Some(AdaptedModule {
            name,
            outputs,
            inputs,
        })
    };
    decoder.tensors().into_iter().filter_map(module).collect()
}

/// The last part of a module's name.
fn leaf(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

#[cfg(test)]
mod tests;
