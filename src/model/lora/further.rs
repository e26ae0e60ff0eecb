//! Settings that a `lora` table requests. Settings that it leaves out have defaults for new
//! adapters; adapters of a PEFT folder that training continues keep their own, and must have those
//! that the table requests.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;

use super::{AdapterTargets, Layers, Lora, LoraConfig, LoraError, Scaling, leaf};
use crate::config::{self, LayersToTransform, TargetModules, Top};
use crate::model::config::{DecoderConfig, layer_of};

/// Settings that a `lora` table requests; `None` if the table leaves a setting out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestedLora {
    /// Rank of the adapters, 1 or more.
    pub r: Option<usize>,
    /// Numerator of the scale.
    pub lora_alpha: Option<f64>,
    /// Denominator of the scale.
    pub scaling: Option<Scaling>,
    /// The adapted projections of a layer.
    pub target_modules: Option<AdapterTargets>,
    /// The adapted layers.
    pub layers_to_transform: Option<Layers>,
}

impl From<LoraConfig> for RequestedLora {
    fn from(config: LoraConfig) -> Self {
        Self {
            r: Some(config.r),
            lora_alpha: Some(config.lora_alpha),
            scaling: Some(config.scaling),
            target_modules: Some(config.target_modules),
            layers_to_transform: Some(config.layers_to_transform),
        }
    }
}

impl From<&config::LoraTable> for RequestedLora {
    fn from(table: &config::LoraTable) -> Self {
        let scaling = |rooted| match rooted {
            true => Scaling::RootRank,
            false => Scaling::Rank,
        };
        let targets = |targets: &TargetModules| match targets {
            TargetModules::Word(_) => AdapterTargets::AllLinear,
            TargetModules::Names(names) => AdapterTargets::Named(names.clone()),
        };
        let layers = |layers: &LayersToTransform| match layers {
            LayersToTransform::Top(Top(count)) => Layers::Top(*count),
            LayersToTransform::These(layers) => Layers::These(layers.clone()),
        };
        Self {
            r: table.r,
            lora_alpha: table.lora_alpha,
            scaling: table.use_rslora.map(scaling),
            target_modules: table.target_modules.as_ref().map(targets),
            layers_to_transform: table.layers_to_transform.as_ref().map(layers),
        }
    }
}

impl RequestedLora {
    /// The settings of new adapters.
    pub fn fresh(&self) -> LoraConfig {
        self.over(&LoraConfig::default())
    }

    /// These settings, with those of `others` where one is left out.
    fn over(&self, others: &LoraConfig) -> LoraConfig {
        let targets = self.target_modules.as_ref();
        let layers = self.layers_to_transform.as_ref();
        LoraConfig {
            r: self.r.unwrap_or(others.r),
            lora_alpha: self.lora_alpha.unwrap_or(others.lora_alpha),
            scaling: self.scaling.unwrap_or(others.scaling),
            target_modules: targets.unwrap_or(&others.target_modules).clone(),
            layers_to_transform: layers.unwrap_or(&others.layers_to_transform).clone(),
        }
    }

    /// Checks that the adapters `found` in the PEFT folder `from`, which training continues, have
    /// the settings that `table` requests. `decoder` is the base.
    ///
    /// # Errors
    /// If a setting differs, with both values; or if the decoder lacks a requested target or layer.
    pub fn check(
        &self,
        table: &str,
        found: &Lora,
        decoder: &DecoderConfig,
        from: &Path,
    ) -> Result<(), LoraError> {
        let differences = self.differences(found, decoder);
        let differences = differences.map_err(|problem| LoraError::Table {
            table: table.to_owned(),
            problem: Box::new(problem),
        })?;
        match differences.is_empty() {
            true => Ok(()),
            false => Err(LoraError::Differs {
                table: table.to_owned(),
                folder: from.to_owned(),
                differences,
            }),
        }
    }

    /// Settings in which the adapters `found` on a decoder differ from these: key, value here,
    /// value there.
    ///
    /// # Errors
    /// If the decoder lacks a requested target or layer.
    fn differences(
        &self,
        found: &Lora,
        decoder: &DecoderConfig,
    ) -> Result<Vec<(&'static str, String, String)>, LoraError> {
        let mut differences = Vec::new();
        differences.extend(differs("r", self.r, found.r));
        differences.extend(differs("lora_alpha", self.lora_alpha, found.lora_alpha));
        let rooted = |scaling: Scaling| scaling == Scaling::RootRank;
        let asked = self.scaling.map(rooted);
        differences.extend(differs("use_rslora", asked, rooted(found.scaling)));
        differences.extend(self.other_targets(found, decoder)?);
        differences.extend(self.other_layers(found, decoder)?);
        Ok(differences)
    }

    /// The difference in projections, compared in the layers that have adapters.
    fn other_targets(
        &self,
        found: &Lora,
        decoder: &DecoderConfig,
    ) -> Result<Option<(&'static str, String, String)>, LoraError> {
        let Some(targets) = &self.target_modules else {
            return Ok(None);
        };
        let asked = LoraConfig {
            target_modules: targets.clone(),
            layers_to_transform: Layers::These(layers(found).into_iter().collect()),
            ..LoraConfig::default()
        };
        let same = asked.resolve(decoder)?.modules == found.modules;
        let here = match targets {
            AdapterTargets::Usual => "PEFT's default".to_owned(),
            AdapterTargets::AllLinear => "\"all-linear\"".to_owned(),
            AdapterTargets::Named(names) => format!("{names:?}"),
        };
        let leaves: BTreeSet<&str> = found.modules.iter().map(|m| leaf(&m.name)).collect();
        let there = leaves.into_iter().collect::<Vec<_>>();
        Ok((!same).then(|| ("target_modules", here, format!("{there:?}"))))
    }

    /// The difference in layers.
    fn other_layers(
        &self,
        found: &Lora,
        decoder: &DecoderConfig,
    ) -> Result<Option<(&'static str, String, String)>, LoraError> {
        let Some(asked) = &self.layers_to_transform else {
            return Ok(None);
        };
        let config = LoraConfig {
            target_modules: AdapterTargets::AllLinear,
            layers_to_transform: asked.clone(),
            ..LoraConfig::default()
        };
        let there = layers(found);
        let same = layers(&config.resolve(decoder)?) == there;
        let here = match asked {
            Layers::All => "all".to_owned(),
            Layers::Top(count) => format!("\"top:{count}\""),
            Layers::These(layers) => format!("{layers:?}"),
        };
        let there: Vec<usize> = there.into_iter().collect();
        Ok((!same).then(|| ("layers_to_transform", here, format!("{there:?}"))))
    }
}

fn differs<T: Display + PartialEq>(
    key: &'static str,
    asked: Option<T>,
    found: T,
) -> Option<(&'static str, String, String)> {
    let asked = asked.filter(|asked| *asked != found)?;
    Some((key, asked.to_string(), found.to_string()))
}

/// The layers that have adapters.
fn layers(lora: &Lora) -> BTreeSet<usize> {
    let layer = |module: &super::Module| layer_of(&module.name);
    lora.modules.iter().filter_map(layer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::{Family, Geometry};

    fn decoder() -> DecoderConfig {
        let sizes = Geometry {
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: None,
            vocab_size: 10,
            max_position_embeddings: 16,
        };
        DecoderConfig::from_scratch(Family::Llama, &sizes).unwrap()
    }

    fn found() -> Lora {
        let config = LoraConfig {
            r: 4,
            lora_alpha: 16.0,
            scaling: Scaling::RootRank,
            target_modules: AdapterTargets::Named(vec!["q_proj".into(), "o_proj".into()]),
            layers_to_transform: Layers::Top(2),
        };
        config.resolve(&decoder()).unwrap()
    }

    fn differences(asked: RequestedLora) -> Vec<String> {
        let differences = asked.differences(&found(), &decoder()).unwrap();
        let line = |(key, here, there)| format!("{key} {here} {there}");
        differences.into_iter().map(line).collect()
    }

    #[test]
    fn what_is_not_set_is_the_folders() {
        assert_eq!(differences(RequestedLora::default()), [""; 0]);
        let same = RequestedLora {
            r: Some(4),
            lora_alpha: Some(16.0),
            scaling: Some(Scaling::RootRank),
            target_modules: Some(AdapterTargets::Named(vec![
                "o_proj".into(),
                "q_proj".into(),
            ])),
            layers_to_transform: Some(Layers::These(vec![1, 2])),
        };
        assert_eq!(differences(same), [""; 0]);
        assert_eq!(RequestedLora::default().fresh(), LoraConfig::default());
    }

    #[test]
    fn each_difference_has_both_values() {
        let other = RequestedLora {
            r: Some(8),
            lora_alpha: Some(32.0),
            scaling: Some(Scaling::Rank),
            target_modules: Some(AdapterTargets::AllLinear),
            layers_to_transform: Some(Layers::All),
        };
        let expected = [
            "r 8 4",
            "lora_alpha 32 16",
            "use_rslora false true",
            "target_modules \"all-linear\" [\"o_proj\", \"q_proj\"]",
            "layers_to_transform all [1, 2]",
        ];
        assert_eq!(differences(other), expected);
        let top = RequestedLora {
            layers_to_transform: Some(Layers::Top(1)),
            ..RequestedLora::default()
        };
        assert_eq!(differences(top), ["layers_to_transform \"top:1\" [1, 2]"]);
    }
}
