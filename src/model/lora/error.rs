//! What can go wrong between adapters and a decoder.

use std::path::{Path, PathBuf};

/// Adapters that a decoder cannot have.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// A target is no projection.
    #[error(
        "target_modules has `{name}`, but no projection of the model is called so; it has {known}"
    )]
    Target {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A layer does not exist.
    #[error("layers_to_transform asks for {asked}; the model has {layers} layers")]
    Layer {
        /// What was asked for.
        asked: String,
        /// What there is.
        layers: usize,
    },
    /// A folder adapts what the model has not.
    #[error(
        "{}: has `{name}`, which fits no module of the model{}; the model must be the one that the adapter was trained on", .file.display(),
        and_others(*.others)
    )]
    Module {
        /// The file of tensors.
        file: PathBuf,
        /// The first of those tensors.
        name: String,
        /// How many there are beside it.
        others: usize,
    },
    /// Other adapters are asked for than a folder has, whose adapters are to be trained further.
    #[error(
        "{}; the adapters of a PEFT folder are trained further, and it has other adapters than those asked for: leave the keys out to take \
         the folder's, or merge its adapters first (collimate export) and start from the merged model", both_values(.folder, .differences)
    )]
    Others {
        /// The folder.
        folder: PathBuf,
        /// Key, value asked for, value in the folder.
        differences: Vec<(&'static str, String, String)>,
    },
    /// A file has no adapter in it.
    #[error(
        "{}: has no adapter of any module (lora_A and lora_B), so that it would change nothing; train or save it again, or name the base \
         model instead", .file.display()
    )]
    Empty {
        /// The adapter's tensors.
        file: PathBuf,
    },
    /// Nothing is left to be adapted.
    #[error("no module has an adapter: target_modules and layers_to_transform leave none")]
    Nothing,
    /// The base has adapters itself.
    #[error("the base model has adapters already; merge them first: collimate export")]
    Adapted,
    /// The base is a reward model.
    #[error("the base is a reward model, and the adapters are to make a language model")]
    RewardModel,
    /// There are no adapters to save.
    #[error("the model has no adapters")]
    Missing,
    /// The base is trained, so that it cannot be shared.
    #[error("the base of an adapter must be frozen")]
    Trained,
}

fn and_others(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!(", and {count} more such tensors"),
    }
}

fn both_values(folder: &Path, differences: &[(&str, String, String)]) -> String {
    let folder = folder.display();
    let line = |(key, here, there): &(&str, String, String)| {
        format!("{key} is {here} here, {there} in {folder}")
    };
    differences.iter().map(line).collect::<Vec<_>>().join("; ")
}
