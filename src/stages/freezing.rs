//! The weights of a model that a supervised stage does not train.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::config::Trainable;
use crate::model::config::{TensorSpec, is_embedding, layer_of};
use crate::ops::param::Trainability;

/// Frozen weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frozen {
    /// Number of frozen layers, from the lowest; the embeddings are frozen with them.
    pub layers: usize,
    /// Whether the embeddings are frozen even if no layer is.
    pub embeddings: bool,
}

impl From<&Trainable> for Frozen {
    fn from(keys: &Trainable) -> Self {
        Self {
            layers: keys.freeze_layers,
            embeddings: keys.freeze_embeddings,
        }
    }
}

impl Frozen {
    /// Whether a tensor is trained.
    pub fn training(self, spec: &TensorSpec) -> Trainability {
        let frozen = match layer_of(&spec.name) {
            Some(layer) => layer < self.layers,
            None => is_embedding(&spec.name) && (self.embeddings || self.layers > 0),
        };
        match frozen {
            true => Trainability::Frozen,
            false => Trainability::Trained,
        }
    }

    /// Checks that the model in `from`, of `layers` layers, has as many layers as are to be frozen.
    ///
    /// # Errors
    /// If there are not so many, with the key of `table`.
    pub fn check(self, table: &str, from: &Path, layers: usize) -> Result<()> {
        ensure!(
            self.layers <= layers,
            "{table}.freeze_layers is {}, but the model in {} has {layers} layers; freeze that \
             many or fewer",
            self.layers,
            from.display()
        );
        Ok(())
    }
}
