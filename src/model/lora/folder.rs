//! Reads and writes PEFT folders: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A tensor's name in the file is its name in the model after the prefix `base_model.model.`. The
//! scalar head of a reward model, which the base lacks, is saved with the adapter.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{AdaptedModule, Lora, LoraError, a_of, leaf, projections};
use crate::files::durable::{on, replace_file};
use crate::model::ModelError;
use crate::model::config::{
    DecoderConfig, Head, SCORE, StoredLayout, TensorSpec, layer_of, weight,
};
use crate::model::fingerprint::Fingerprint;
use crate::model::hf_config::adapter::{ADAPTER_CONFIG, AdapterConfig};
use crate::model::weights::{SaveDtype, Weights, WeightsError, save_file};

/// The file of tensors.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// PEFT's prefix of tensor names.
const PREFIX: &str = "base_model.model.";
/// Key in the file's header for the fingerprint of the base; other readers ignore it.
const FINGERPRINT: &str = "base_fingerprint";

/// The adapters of a PEFT folder, open for reading.
pub struct AdapterFolder {
    /// Contents of `adapter_config.json`.
    pub config: AdapterConfig,
    /// The adapters in the folder.
    pub lora: Lora,
    file: PathBuf,
    weights: Weights,
}

impl AdapterFolder {
    /// Opens a PEFT folder whose base is `decoder`.
    ///
    /// # Errors
    /// If a file is missing or wrong, the adapter has tensors that belong to no module of the
    /// decoder, or it adapts no module.
    pub fn open(folder: &Path, decoder: &DecoderConfig) -> Result<Self, ModelError> {
        let Some(config) = AdapterConfig::read(folder)? else {
            let (found, needed) = (
                "no adapter_config.json",
                "a PEFT folder (adapter_config.json, adapter_model.safetensors)",
            );
            return Err(ModelError::Kind {
                folder: folder.to_owned(),
                found,
                needed,
            });
        };
        let file = folder.join(ADAPTER_WEIGHTS);
        let weights = Weights::open_file(file.clone())?;
        let names: BTreeSet<&str> = weights.names().collect();
        let has = |module: &AdaptedModule| names.contains(in_file(&a_of(&module.name)).as_str());
        let mut modules = projections(decoder);
        modules.retain(has);
        let lora = Lora {
            r: config.r,
            lora_alpha: config.lora_alpha,
            use_rslora: config.use_rslora,
            modules,
        };
        let known: BTreeSet<String> = lora
            .tensors()
            .iter()
            .map(|spec| in_file(&spec.name))
            .chain((config.head == Head::Score).then(|| in_file(&weight(SCORE))))
            .collect();
        let mut unknown = names.iter().filter(|name| !known.contains(**name));
        if let Some(name) = unknown.next() {
            return Err(ModelError::Lora(LoraError::Module {
                file,
                name: (*name).to_owned(),
                others: unknown.count(),
            }));
        }
        if lora.modules.is_empty() {
            return Err(ModelError::Lora(LoraError::Empty { file }));
        }
        Ok(Self {
            config,
            lora,
            file,
            weights,
        })
    }

    /// Whether the folder has this tensor, by its name in the model.
    pub fn has(&self, name: &str) -> bool {
        let name = in_file(name);
        self.weights.names().any(|found| found == name)
    }

    /// Whether the file records the fingerprint of its base.
    pub fn has_note(&self) -> bool {
        self.weights.note(FINGERPRINT).is_some()
    }

    /// The values of a tensor; `spec` has its name in the model.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn load(&self, spec: &TensorSpec) -> Result<Vec<f32>, WeightsError> {
        let spec = TensorSpec {
            name: in_file(&spec.name),
            ..spec.clone()
        };
        self.weights.load(&spec)
    }

    /// Checks that the adapter was trained on this base, if the file records a fingerprint; `found`
    /// computes the base's.
    ///
    /// # Errors
    /// If the fingerprints differ.
    pub fn check_base(
        &self,
        found: impl FnOnce() -> Result<Fingerprint, ModelError>,
    ) -> Result<(), ModelError> {
        let Some(expected) = self.weights.note(FINGERPRINT) else {
            return Ok(());
        };
        let found = found()?.to_string();
        match found == expected {
            true => Ok(()),
            false => Err(ModelError::OtherBase {
                file: self.file.clone(),
                expected: expected.to_owned(),
                found,
            }),
        }
    }
}

/// Writes a PEFT folder, which is created if needed; `fetch` returns the values of a tensor by its
/// name in the model.
///
/// # Errors
/// If a file cannot be written or `fetch` fails.
pub fn save(
    folder: &Path,
    config: &AdapterConfig,
    lora: &Lora,
    decoder: &DecoderConfig,
    dtype: SaveDtype,
    base: Fingerprint,
    fetch: impl Fn(&str) -> candle_core::Result<Vec<f32>>,
) -> Result<(), ModelError> {
    let mut specs = lora.tensors();
    let score = weight(SCORE);
    specs.extend(
        decoder
            .tensors()
            .into_iter()
            .filter(|spec| spec.name == score),
    );
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    specs
        .iter_mut()
        .for_each(|spec| spec.name = in_file(&spec.name));
    let own: HashMap<&str, &String> = specs.iter().map(|s| s.name.as_str()).zip(&names).collect();
    let notes = BTreeMap::from([(FINGERPRINT.to_owned(), base.to_string())]);
    std::fs::create_dir_all(folder)
        .map_err(on("create", folder))
        .map_err(WeightsError::from)?;
    save_file(
        &folder.join(ADAPTER_WEIGHTS),
        &specs,
        dtype,
        notes,
        |spec: &TensorSpec| fetch(own[spec.name.as_str()]).map(Into::into),
    )?;
    let (targets, layers) = described(lora, decoder);
    let turned = decoder.family.names().projections == StoredLayout::Conv1d;
    let object = Value::Object(config.to_json(&targets, layers.as_deref(), turned));
    let file = folder.join(ADAPTER_CONFIG);
    Ok(replace_file(&file, |out| writeln!(out, "{object:#}")).map_err(WeightsError::from)?)
}

/// The modules as `target_modules` and `layers_to_transform`: by the last parts of their names if
/// these select no other module in the layers, otherwise by their whole names.
fn described(lora: &Lora, decoder: &DecoderConfig) -> (Vec<String>, Option<Vec<usize>>) {
    let leaves: BTreeSet<&str> = lora.modules.iter().map(|m| leaf(&m.name)).collect();
    let layers: BTreeSet<usize> = lora
        .modules
        .iter()
        .filter_map(|m| layer_of(&m.name))
        .collect();
    let is_meant = |module: &&AdaptedModule| {
        let layer = layer_of(&module.name);
        leaves.contains(leaf(&module.name)) && layer.is_some_and(|layer| layers.contains(&layer))
    };
    if projections(decoder).iter().filter(is_meant).count() > lora.modules.len() {
        let names = lora.modules.iter().map(|m| m.name.clone());
        return (names.collect(), None);
    }
    let all = layers.len() == decoder.num_hidden_layers;
    let leaves = leaves.into_iter().map(str::to_owned).collect();
    (leaves, (!all).then(|| layers.into_iter().collect()))
}

fn in_file(name: &str) -> String {
    format!("{PREFIX}{name}")
}
