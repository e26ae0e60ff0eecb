//! Errors of loading, running and saving models.

use std::path::{Path, PathBuf};

use super::config::{Head, InvalidDecoder};
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
    #[error("{}: holds {found}, but {needed} is needed here", .folder.display())]
    Kind {
        /// The model folder.
        folder: PathBuf,
        /// The kind of model in the folder.
        found: &'static str,
        /// The kind of model that is needed.
        needed: &'static str,
    },
    /// The decoder cannot have these adapters.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// An adapter was trained on another base.
    #[error(
        "{}: the adapter was trained on a base with fingerprint {expected}, but this base has \
         {found}; set base_model_name_or_path in adapter_config.json to the model that the \
         adapter was trained on, or train an adapter on this one",
        .file.display()
    )]
    OtherBase {
        /// The adapter's tensors.
        file: PathBuf,
        /// Fingerprint of the base that the adapter was trained on.
        expected: String,
        /// Fingerprint of this base.
        found: String,
    },
    /// The trunk has more layers than the policy.
    #[error("ppo.trunk_layers is {layers}, but the policy has {found} layers")]
    TrunkLayers {
        /// Number of layers of the trunk.
        layers: usize,
        /// Number of layers of the policy.
        found: usize,
    },
    /// A model was trained on another trunk than the one that it should share.
    #[error(
        "{}: its lowest {layers} layers have the fingerprint {found}, those of the policy \
         {expected}; to share a trunk, train both from one model, with freeze_layers = {layers} \
         in the table of each stage that trains one of them from it",
        .folder.display()
    )]
    OtherTrunk {
        /// The model folder.
        folder: PathBuf,
        /// Number of layers of the trunk.
        layers: usize,
        /// Fingerprint of the policy's trunk.
        expected: String,
        /// Fingerprint of the model's lowest layers.
        found: String,
    },
    /// The trunk has the same weights, but `config.json` describes another computation with them.
    #[error(
        "{}: its lowest {layers} layers have the policy's weights, but its config.json describes \
         another computation (heads, norm epsilon, rotary embedding, activation or sliding \
         window); give both folders the config.json that they were trained with",
        .folder.display()
    )]
    OtherLayers {
        /// The model folder.
        folder: PathBuf,
        /// Number of layers of the trunk.
        layers: usize,
    },
    /// A computation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl ModelError {
    /// Checks that the model in `folder`, which has the head `found`, is of the kind of `needed`.
    ///
    /// # Errors
    /// If it is of the other kind.
    pub(crate) fn check_head(folder: &Path, found: Head, needed: Head) -> Result<(), Self> {
        let (found, needed) = match (found, needed) {
            (Head::Score, Head::LanguageModel) => ("a reward model", "a language model"),
            (Head::LanguageModel, Head::Score) => (
                "a language model",
                "a reward model (...ForSequenceClassification with one label)",
            ),
            _ => return Ok(()),
        };
        Err(Self::Kind {
            folder: folder.to_owned(),
            found,
            needed,
        })
    }
}
