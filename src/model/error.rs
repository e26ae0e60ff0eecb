//! What can go wrong with a model.

use std::path::PathBuf;

use super::config::InvalidDecoder;
use super::hf_config::HfConfigError;
use super::lora::LoraError;
use super::weights::WeightsError;

/// An error of loading, running or saving a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `config.json` cannot be read or written.
    #[error(transparent)]
    Config(#[from] HfConfigError),
    /// The weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The sizes do not fit together.
    #[error("the model's sizes do not fit together")]
    Impossible(#[from] InvalidDecoder),
    /// The folder holds another kind of model than is needed.
    #[error("{}: holds {found}; {needed} is needed here", .folder.display())]
    Kind {
        /// The model folder.
        folder: PathBuf,
        /// What it holds.
        found: &'static str,
        /// What was asked for.
        needed: &'static str,
    },
    /// The decoder cannot have these adapters.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// An adapter stands on another base than it was trained on.
    #[error("{}: the adapter was trained on a base with fingerprint {expected}, this one has {found}; \
         it means nothing on another: train it on this one, or give the model that it was trained on (base_model_name_or_path in \
         adapter_config.json)", .file.display())]
    OtherBase {
        /// The adapter's tensors.
        file: PathBuf,
        /// The base's that it was trained on.
        expected: String,
        /// That of the one given.
        found: String,
    },
    /// A trunk of more layers than there are.
    #[error(
        "a trunk of {layers} layers was asked for (ppo.trunk_layers), but the policy has {found}"
    )]
    TrunkLayers {
        /// What was asked for.
        layers: usize,
        /// What there is.
        found: usize,
    },
    /// A model was trained on another trunk than the one that it is to share.
    #[error("{}: its lowest {layers} layers have the fingerprint {found}, those of the policy {expected}; to share a trunk it must be \
         trained from the same model with these layers frozen (reward.freeze_layers = {layers}), and so must the policy if [dpo] tuned it \
         (dpo.freeze_layers = {layers})", .folder.display())]
    OtherTrunk {
        /// The model folder.
        folder: PathBuf,
        /// Layers of the trunk.
        layers: usize,
        /// The trunk's fingerprint.
        expected: String,
        /// The folder's.
        found: String,
    },
    /// The trunk has the same weights, but something else is computed with them.
    #[error("{}: its lowest {layers} layers have the weights of the policy's, but its config.json asks for another computation with them \
         (heads, norm epsilon, rotary embedding, activation or sliding window); give both the config.json that they were trained with",
         .folder.display())]
    OtherLayers {
        /// The model folder.
        folder: PathBuf,
        /// Layers of the trunk.
        layers: usize,
    },
    /// A computation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
