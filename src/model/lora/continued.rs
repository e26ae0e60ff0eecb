//! Checks adapters of a PEFT folder that training continues: they must have the settings that the
//! stage's `lora` table sets. Settings that the table leaves out are the folder's.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;

use super::{AdaptedModule, Lora, LoraError, leaf};
use crate::config::{LayersToTransform, LoraTable, TargetModules};
use crate::model::config::{DecoderConfig, layer_of};

/// A setting in which a table and a folder differ: key, value in the table, value in the folder.
type Difference = (&'static str, String, String);

impl Lora {
    /// The adapters that the table called `name` trains: those that were `found` in the PEFT folder
    /// `from`, which must have the table's settings, or new ones. `decoder` is their base.
    ///
    /// # Errors
    /// If a setting differs, with both values; or if the decoder lacks a target or layer of the
    /// table.
    pub fn trained(
        found: Option<&Self>,
        table: &LoraTable,
        name: &str,
        decoder: &DecoderConfig,
        from: &Path,
    ) -> Result<Self, LoraError> {
        let Some(found) = found else {
            return Self::new(table, decoder).map_err(in_table(name));
        };
        found.check(table, name, decoder, from)?;
        Ok(found.clone())
    }

    /// Checks that these adapters, read from the PEFT folder `from`, have the settings of the table
    /// called `name`. `decoder` is their base.
    ///
    /// # Errors
    /// If a setting differs, with both values; or if the decoder lacks a target or layer of the
    /// table.
    pub fn check(
        &self,
        table: &LoraTable,
        name: &str,
        decoder: &DecoderConfig,
        from: &Path,
    ) -> Result<(), LoraError> {
        let differences = self.differences(table, decoder);
        let differences = differences.map_err(in_table(name))?;
        match differences.is_empty() {
            true => Ok(()),
            false => Err(LoraError::Differs {
                table: name.to_owned(),
                folder: from.to_owned(),
                differences,
            }),
        }
    }

    /// The settings in which the table differs from these adapters.
    fn differences(
        &self,
        table: &LoraTable,
        decoder: &DecoderConfig,
    ) -> Result<Vec<Difference>, LoraError> {
        let mut differences = Vec::new();
        differences.extend(differs("r", table.r, self.r));
        differences.extend(differs("lora_alpha", table.lora_alpha, self.lora_alpha));
        differences.extend(differs("use_rslora", table.use_rslora, self.use_rslora));
        differences.extend(self.other_targets(table, decoder)?);
        differences.extend(self.other_layers(table, decoder)?);
        Ok(differences)
    }

    /// The difference in projections, compared in the layers that have adapters.
    fn other_targets(
        &self,
        table: &LoraTable,
        decoder: &DecoderConfig,
    ) -> Result<Option<Difference>, LoraError> {
        let here = match &table.target_modules {
            None => return Ok(None),
            Some(TargetModules::AllLinear) => "\"all-linear\"".to_owned(),
            Some(TargetModules::Named(names)) => format!("{names:?}"),
        };
        let layers = self.layers().into_iter().collect();
        let here_in_layers = LoraTable {
            layers_to_transform: Some(LayersToTransform::These(layers)),
            ..table.clone()
        };
        let same = Self::new(&here_in_layers, decoder)?.modules == self.modules;
        let there: BTreeSet<&str> = self.modules.iter().map(|m| leaf(&m.name)).collect();
        let there = there.into_iter().collect::<Vec<_>>();
        Ok((!same).then(|| ("target_modules", here, format!("{there:?}"))))
    }

    /// The difference in layers.
    fn other_layers(
        &self,
        table: &LoraTable,
        decoder: &DecoderConfig,
    ) -> Result<Option<Difference>, LoraError> {
        let here = match &table.layers_to_transform {
            None => return Ok(None),
            Some(LayersToTransform::Top(count)) => format!("\"top:{count}\""),
            Some(LayersToTransform::These(layers)) => format!("{layers:?}"),
        };
        let all_projections = LoraTable {
            target_modules: Some(TargetModules::AllLinear),
            ..table.clone()
        };
        let there = self.layers();
        let same = Self::new(&all_projections, decoder)?.layers() == there;
        let there: Vec<usize> = there.into_iter().collect();
        Ok((!same).then(|| ("layers_to_transform", here, format!("{there:?}"))))
    }

    /// The layers that have adapters.
    fn layers(&self) -> BTreeSet<usize> {
        let layer = |module: &AdaptedModule| layer_of(&module.name);
        self.modules.iter().filter_map(layer).collect()
    }
}

fn in_table(name: &str) -> impl FnOnce(LoraError) -> LoraError {
    |problem| LoraError::Table {
        table: name.to_owned(),
        problem: Box::new(problem),
    }
}

fn differs<T: Display + PartialEq>(
    key: &'static str,
    requested: Option<T>,
    found: T,
) -> Option<Difference> {
    let requested = requested.filter(|requested| *requested != found)?;
    Some((key, requested.to_string(), found.to_string()))
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

    fn names(names: [&str; 2]) -> Option<TargetModules> {
        Some(TargetModules::Named(names.map(str::to_owned).to_vec()))
    }

    fn differences(table: &LoraTable) -> Vec<String> {
        let found = LoraTable {
            r: Some(4),
            lora_alpha: Some(16.0),
            use_rslora: Some(true),
            target_modules: names(["q_proj", "o_proj"]),
            layers_to_transform: Some(LayersToTransform::Top(2)),
            ..LoraTable::default()
        };
        let found = Lora::new(&found, &decoder()).unwrap();
        let differences = found.differences(table, &decoder()).unwrap();
        let line = |(key, here, there)| format!("{key} {here} {there}");
        differences.into_iter().map(line).collect()
    }

    #[test]
    fn what_is_not_set_is_the_folders() {
        assert_eq!(differences(&LoraTable::default()), [""; 0]);
        let same = LoraTable {
            r: Some(4),
            lora_alpha: Some(16.0),
            use_rslora: Some(true),
            target_modules: names(["o_proj", "q_proj"]),
            layers_to_transform: Some(LayersToTransform::These(vec![1, 2])),
            ..LoraTable::default()
        };
        assert_eq!(differences(&same), [""; 0]);
    }

    #[test]
    fn each_difference_has_both_values() {
        let other = LoraTable {
            r: Some(8),
            lora_alpha: Some(32.0),
            use_rslora: Some(false),
            target_modules: Some(TargetModules::AllLinear),
            layers_to_transform: Some(LayersToTransform::These(vec![0, 1, 2])),
            ..LoraTable::default()
        };
        let expected = [
            "r 8 4",
            "lora_alpha 32 16",
            "use_rslora false true",
            "target_modules \"all-linear\" [\"o_proj\", \"q_proj\"]",
            "layers_to_transform [0, 1, 2] [1, 2]",
        ];
        assert_eq!(differences(&other), expected);
        let top = LoraTable {
            layers_to_transform: Some(LayersToTransform::Top(1)),
            ..LoraTable::default()
        };
        assert_eq!(differences(&top), ["layers_to_transform \"top:1\" [1, 2]"]);
    }
}
