//! Settings of adapters, and the adapters of a decoder that follow from them.

use super::{Lora, LoraError, Module, leaf, projections};
use crate::model::config::{DecoderConfig, Family, layer_of};

/// Factor of the product of an adapter's two matrices.
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
pub enum AdapterTargets {
    /// PEFT's default: queries and values, or the projection that computes them.
    #[default]
    Usual,
    /// All projections.
    AllLinear,
    /// Projections whose name is, or ends in, one of these.
    Named(Vec<String>),
}

/// Which layers have adapters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layers {
    /// All layers.
    #[default]
    All,
    /// This many uppermost layers.
    Top(usize),
    /// These layers, counted from 0.
    These(Vec<usize>),
}

/// Settings of new adapters.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the adapters, 1 or more.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Denominator of the scale.
    pub scaling: Scaling,
    /// The adapted projections of a layer.
    pub target_modules: AdapterTargets,
    /// The adapted layers.
    pub layers_to_transform: Layers,
}

impl Default for LoraConfig {
    /// TRL's rank and scale, PEFT's modules.
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            scaling: Scaling::default(),
            target_modules: AdapterTargets::default(),
            layers_to_transform: Layers::default(),
        }
    }
}

impl LoraConfig {
    /// The adapters of a decoder.
    ///
    /// # Errors
    /// If the decoder lacks a target or a layer.
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

    /// Names of the adapted projections; `None` for all of them.
    fn targets(&self, family: Family) -> Option<Vec<String>> {
        match &self.target_modules {
            AdapterTargets::AllLinear => None,
            AdapterTargets::Named(names) => Some(names.clone()),
            AdapterTargets::Usual => {
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

/// Whether `target` selects the module, as in PEFT: by its whole name, or by the last parts of it.
fn is_target(module: &str, target: &str) -> bool {
    let before = module.strip_suffix(target);
    before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
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
