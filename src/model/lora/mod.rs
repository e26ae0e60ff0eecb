//! Low-rank adapters (LoRA: Hu et al. 2021): which modules of a decoder have one, and what tensors these are.
//!
//! An adapted projection is `W · x + scale · B · A · x` with a frozen `W`. Names and defaults are those of Hugging Face's PEFT, whose
//! folders come in and go out in [`folder`]. Left out: dropout, biases, adapters of embeddings and heads.

mod error;
pub mod folder;
mod merge;
mod stored;

use super::config::{DecoderConfig, Family, Init, Layout, TensorSpec, layer_of};

pub use error::LoraError;
pub use merge::merged;
pub use stored::Stored;

/// What a weight's name ends with.
const WEIGHT: &str = ".weight";

/// By what the product of the two matrices is multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scaling {
    /// α/r (Hu et al. 2021, section 4.1).
    #[default]
    Rank,
    /// α/√r (Kalajdzievski 2023, section 3): PEFT's `use_rslora`.
    RootRank,
}

/// Which projections of a layer have an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// Those that PEFT adapts when it is told nothing: queries and values, or what computes them.
    #[default]
    Usual,
    /// All of them.
    AllLinear,
    /// Those whose name is, or ends in, one of these.
    Named(Vec<String>),
}

/// Which layers have adapters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layers {
    /// All of them.
    #[default]
    All,
    /// The uppermost ones, as many as this.
    Top(usize),
    /// These, counted from 0.
    These(Vec<usize>),
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the adapters, 1 or more.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// The scale's denominator.
    pub scaling: Scaling,
    /// The projections.
    pub target_modules: Targets,
    /// The layers.
    pub layers_to_transform: Layers,
}

impl Default for LoraConfig {
    /// TRL's rank and scale, PEFT's modules.
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            scaling: Scaling::default(),
            target_modules: Targets::default(),
            layers_to_transform: Layers::default(),
        }
    }
}

/// A projection that has an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name in the checkpoint, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Its width.
    pub outputs: usize,
    /// Width of what it reads.
    pub inputs: usize,
}

/// The adapters of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// The scale's denominator.
    pub scaling: Scaling,
    /// The adapted projections, in the order of the forward pass.
    pub modules: Vec<Module>,
}

impl LoraConfig {
    /// The adapters of a decoder.
    ///
    /// # Errors
    /// If it lacks a target or a layer.
    pub fn resolve(&self, decoder: &DecoderConfig) -> Result<Lora, LoraError> {
        let mut modules = projections(decoder);
        let targets = self.targets(decoder.family);
        for target in targets.iter().flatten() {
            if !modules.iter().any(|module| is_target(&module.name, target)) {
                return Err(unknown_target(target, &modules));
            }
        }
        let layers = self.layers(decoder.num_hidden_layers)?;
        modules.retain(|module| {
            let layer = layer_of(&module.name);
            let is_meant =
                |targets: &Vec<String>| targets.iter().any(|t| is_target(&module.name, t));
            layer.is_some_and(|layer| layers.contains(&layer))
                && targets.as_ref().is_none_or(is_meant)
        });
        if modules.is_empty() {
            return Err(LoraError::Nothing);
        }
        Ok(Lora {
            r: self.r,
            lora_alpha: self.lora_alpha,
            scaling: self.scaling,
            modules,
        })
    }

    /// Names; `None` for all projections.
    fn targets(&self, family: Family) -> Option<Vec<String>> {
        match &self.target_modules {
            Targets::AllLinear => None,
            Targets::Named(names) => Some(names.clone()),
            Targets::Usual => {
                let usual: &[&str] = match family {
                    Family::Gpt2 => &["c_attn"],
                    _ => &["q_proj", "v_proj"],
                };
                Some(usual.iter().map(|&name| name.to_owned()).collect())
            }
        }
    }

    fn layers(&self, count: usize) -> Result<Vec<usize>, LoraError> {
        let wrong = |asked: String| LoraError::Layer {
            asked,
            layers: count,
        };
        match &self.layers_to_transform {
            Layers::All => Ok((0..count).collect()),
            Layers::Top(top) if *top > count => Err(wrong(format!("the top {top}"))),
            Layers::Top(top) => Ok((count - top..count).collect()),
            Layers::These(layers) => match layers.iter().find(|&&layer| layer >= count) {
                Some(layer) => Err(wrong(format!("layer {layer}, counted from 0"))),
                None => Ok(layers.clone()),
            },
        }
    }
}

impl Lora {
    /// Factor of the product of the two matrices.
    pub fn scale(&self) -> f32 {
        let r = self.r as f64;
        let below = match self.scaling {
            Scaling::Rank => r,
            Scaling::RootRank => r.sqrt(),
        };
        (self.lora_alpha / below) as f32
    }

    /// The lowest layer that has an adapter.
    pub fn lowest_layer(&self) -> Option<usize> {
        self.modules.iter().filter_map(|m| layer_of(&m.name)).min()
    }

    /// Whether a projection has an adapter.
    pub fn adapts(&self, module: &str) -> bool {
        self.modules.iter().any(|m| m.name == module)
    }

    /// The adapters' tensors. `A` is drawn as PEFT draws it (Kaiming uniform with a = √5, which is uniform within one over the root
    /// of the inputs), `B` is zero: a fresh adapter changes nothing.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let of = |module: &Module| {
            let bound = 1.0 / (module.inputs as f64).sqrt();
            let spec = |name, shape, init| TensorSpec {
                name,
                shape,
                layout: Layout::OutIn,
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
pub fn projections(decoder: &DecoderConfig) -> Vec<Module> {
    let module = |spec: TensorSpec| {
        layer_of(&spec.name)?;
        let &[outputs, inputs] = &spec.shape[..] else {
            return None;
        };
        let name = spec.name.strip_suffix(WEIGHT)?.to_owned();
        Some(Module {
            name,
            outputs,
            inputs,
        })
    };
    decoder.tensors().into_iter().filter_map(module).collect()
}

/// Whether `target` means the module, as PEFT has it: the whole name, or its last parts.
fn is_target(module: &str, target: &str) -> bool {
    let before = module.strip_suffix(target);
    before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The last part of a module's name.
fn leaf(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

fn unknown_target(name: &str, modules: &[Module]) -> LoraError {
    let mut known: Vec<&str> = Vec::new();
    for module in modules {
        let leaf = leaf(&module.name);
        if !known.contains(&leaf) {
            known.push(leaf);
        }
    }
    LoraError::Target {
        name: name.to_owned(),
        known: known.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Geometry;

    fn decoder(family: Family) -> DecoderConfig {
        let sizes = Geometry {
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            num_key_value_heads: if family == Family::Gpt2 { 2 } else { 1 },
            head_dim: None,
            vocab_size: 10,
            max_position_embeddings: 16,
        };
        DecoderConfig::from_scratch(family, &sizes).unwrap()
    }

    fn config(targets: Targets, layers: Layers) -> LoraConfig {
        LoraConfig {
            r: 4,
            lora_alpha: 6.0,
            scaling: Scaling::Rank,
            target_modules: targets,
            layers_to_transform: layers,
        }
    }

    fn names(config: &LoraConfig, family: Family) -> Vec<String> {
        let lora = config.resolve(&decoder(family)).unwrap();
        lora.modules.into_iter().map(|m| m.name).collect()
    }

    fn named(names: &[&str]) -> Targets {
        Targets::Named(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn targets_and_layers_choose_modules() {
        let usual = config(Targets::Usual, Layers::Top(1));
        assert_eq!(
            names(&usual, Family::Llama),
            [
                "model.layers.2.self_attn.q_proj",
                "model.layers.2.self_attn.v_proj"
            ]
        );
        assert_eq!(names(&usual, Family::Gpt2), ["transformer.h.2.attn.c_attn"]);
        let all = config(Targets::AllLinear, Layers::All);
        assert_eq!(names(&all, Family::Qwen3).len(), 3 * 7);
        // As in PEFT a name stands for every module that ends in it.
        let both = config(named(&["c_proj"]), Layers::These(vec![1]));
        assert_eq!(
            names(&both, Family::Gpt2),
            ["transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_proj"]
        );
        let one = config(named(&["mlp.c_proj"]), Layers::These(vec![0]));
        assert_eq!(names(&one, Family::Gpt2), ["transformer.h.0.mlp.c_proj"]);
    }

    #[test]
    fn tensors_have_the_shapes_of_peft() {
        let config = config(named(&["k_proj"]), Layers::Top(1));
        let specs = config.resolve(&decoder(Family::Llama)).unwrap().tensors();
        let shapes: Vec<(&str, &[usize])> = specs
            .iter()
            .map(|spec| (spec.name.as_str(), &spec.shape[..]))
            .collect();
        let module = "model.layers.2.self_attn.k_proj";
        let (a, b) = (a_of(module), b_of(module));
        assert_eq!(shapes, [(&a[..], &[4, 8][..]), (&b[..], &[4, 4][..])]);
        assert_eq!(
            specs[0].init,
            Init::Uniform {
                bound: 1.0 / 8f64.sqrt()
            }
        );
    }

    #[test]
    fn scales() {
        let mut lora = config(Targets::Usual, Layers::All)
            .resolve(&decoder(Family::Llama))
            .unwrap();
        assert_eq!(lora.scale(), 1.5);
        lora.scaling = Scaling::RootRank;
        assert_eq!(lora.scale(), 3.0);
    }

    #[test]
    fn what_the_decoder_lacks_is_named() {
        let refused = |targets, layers| {
            let lora = config(targets, layers).resolve(&decoder(Family::Llama));
            lora.unwrap_err().to_string()
        };
        let message = refused(named(&["q_proj", "c_fc"]), Layers::All);
        assert!(
            message.contains("`c_fc`") && message.contains("q_proj, k_proj, v_proj, o_proj"),
            "{message}"
        );
        assert!(refused(Targets::Usual, Layers::Top(4)).contains("the top 4"));
        assert!(refused(Targets::Usual, Layers::These(vec![3])).contains("layer 3"));
        assert!(refused(Targets::Usual, Layers::Top(0)).contains("no module"));
    }
}
