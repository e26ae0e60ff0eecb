//! The adapters of a decoder that a `lora` table describes.

use super::{AdaptedModule, Lora, LoraError, leaf, projections};
use crate::config::{LayersToTransform, LoraTable, TargetModules};
use crate::model::config::{DecoderConfig, Family, layer_of};

impl Lora {
    /// The new adapters that a table describes.
    ///
    /// # Errors
    /// If the decoder lacks a target or a layer.
    pub fn new(table: &LoraTable, decoder: &DecoderConfig) -> Result<Self, LoraError> {
        let mut modules = projections(decoder);
        let targets = targets(table.target_modules.as_ref(), decoder.family);
        for target in targets.iter().flatten() {
            if !modules.iter().any(|module| is_target(&module.name, target)) {
                return Err(unknown_target(target, &modules));
            }
        }
        let count = decoder.num_hidden_layers;
        let layers = layers(table.layers_to_transform.as_ref(), count)?;
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
        Ok(Self {
            r: table.r(),
            lora_alpha: table.lora_alpha(),
            use_rslora: table.use_rslora.unwrap_or(false),
            modules,
        })
    }
}

/// Names of the adapted projections; `None` for all of them. By default they are PEFT's: queries
/// and values, or the projection that computes them.
fn targets(targets: Option<&TargetModules>, family: Family) -> Option<Vec<String>> {
    match targets {
        Some(TargetModules::AllLinear) => None,
        Some(TargetModules::Named(names)) => Some(names.clone()),
        None => {
            let usual: &[&str] = match family {
                Family::Gpt2 => &["c_attn"],
                _ => &["q_proj", "v_proj"],
            };
            Some(usual.iter().map(|&name| name.to_owned()).collect())
        }
    }
}

/// The adapted layers of a decoder of `count` layers.
fn layers(layers: Option<&LayersToTransform>, count: usize) -> Result<Vec<usize>, LoraError> {
    let wrong = |requested: String| LoraError::Layer {
        requested,
        layers: count,
    };
    match layers {
        None => Ok((0..count).collect()),
        Some(LayersToTransform::Top(top)) if *top > count => Err(wrong(format!("the top {top}"))),
        Some(LayersToTransform::Top(top)) => Ok((count - top..count).collect()),
        Some(LayersToTransform::These(layers)) => {
            match layers.iter().find(|&&layer| layer >= count) {
                Some(layer) => Err(wrong(format!("layer {layer}, counted from 0"))),
                None => Ok(layers.clone()),
            }
        }
    }
}

/// Whether `target` selects the module, as in PEFT: by its whole name, or by the last parts of it.
fn is_target(module: &str, target: &str) -> bool {
    let before = module.strip_suffix(target);
    before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn unknown_target(name: &str, modules: &[AdaptedModule]) -> LoraError {
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
