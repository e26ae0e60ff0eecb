//! Errors of adapters that do not fit a decoder.

use std::path::PathBuf;

/// Adapters that a decoder cannot have.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// A target is not a projection of the model.
    #[error(
        "target_modules has `{name}`, but the model has no such projection; its projections are \
         {known}"
    )]
    Target {
        /// The unknown target.
        name: String,
        /// Names of the projections.
        known: String,
    },
    /// A layer does not exist.
    #[error("layers_to_transform has {requested}, but the model has {layers} layers")]
    Layer {
        /// The requested layers in words.
        requested: String,
        /// Number of layers of the model.
        layers: usize,
    },
    /// A folder has an adapter for a module that the model lacks.
    #[error(
        "{}: `{name}` fits no module of the model{}; the base must be the model that the adapter \
         was trained on",
        .file.display(),
        and_others(*.others)
    )]
    Module {
        /// The file of tensors.
        file: PathBuf,
        /// The first tensor without a module.
        name: String,
        /// Number of further such tensors.
        others: usize,
    },
    /// A table requests other settings than those of the adapter that it continues.
    #[error(
        "[{table}] continues the adapter in {}, so its settings must match: {}; remove these keys \
         to use the adapter's settings, or merge the adapter (collimate export) and start from the \
         merged model",
        .folder.display(),
        both_values(.differences)
    )]
    Differs {
        /// Name of the table.
        table: String,
        /// The PEFT folder.
        folder: PathBuf,
        /// Key, value in the table, value in the folder.
        differences: Vec<(&'static str, String, String)>,
    },
    /// A table's settings do not fit the model.
    #[error("[{table}] {problem}")]
    Table {
        /// Name of the table.
        table: String,
        /// The mismatch between the settings and the model.
        problem: Box<LoraError>,
    },
    /// A file holds no adapter.
    #[error(
        "{}: holds no adapter (tensors lora_A and lora_B of a module) and would change nothing; \
         train or save it again, or name the base model instead",
        .file.display()
    )]
    Empty {
        /// The adapter's tensors.
        file: PathBuf,
    },
    /// The settings select no module.
    #[error("target_modules and layers_to_transform select no module of the model")]
    Nothing,
    /// The base has adapters itself.
    #[error("the base model has adapters itself; merge them first with collimate export")]
    Adapted,
    /// The base is a reward model.
    #[error("the base is a reward model; a language model needs a language model as its base")]
    RewardModel,
    /// The model has no adapters to save or check.
    #[error("the model has no adapters")]
    Missing,
    /// The base is trained and cannot be shared.
    #[error("the base of an adapter must be frozen")]
    Trained,
}

fn and_others(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!(", and {count} more such tensors"),
    }
}

fn both_values(differences: &[(&str, String, String)]) -> String {
    let line = |(key, here, there): &(&str, String, String)| {
        format!("{key} is {here} here, {there} there")
    };
    differences.iter().map(line).collect::<Vec<_>>().join("; ")
}
