//! The trunk: the embedding and the lowest layers of a frozen decoder, which others hold in common with it.

use std::path::Path;

use half::{bf16, f16};

use super::config::{TensorSpec, is_embedding, layer_of};
use super::decoder::{Decoder, Holding};
use super::error::ModelError;
use super::fingerprint::{Fingerprint, FingerprintBuilder};
use super::hf_config::HfConfig;
use super::lora::Stored;
use crate::model::config::Head;
use crate::ops::param::Training;

/// Whether a tensor belongs to a trunk of so many layers.
pub fn in_trunk(name: &str, layers: usize) -> bool {
    layer_of(name).map_or(is_embedding(name), |layer| layer < layers)
}

impl Decoder {
    /// Reads a folder's upper layers, norm and head onto the trunk of `base`; its own trunk is passed over. The rest is held as
    /// `training` says.
    ///
    /// # Errors
    /// As [`Decoder::load_sharing`], and if the base has not so many layers.
    pub fn load_on_trunk(
        base: &Decoder,
        layers: usize,
        folder: &Path,
        head: Head,
        seed: u64,
        training: Training,
    ) -> Result<Self, ModelError> {
        base.check_depth(layers)?;
        let shared = |spec: &TensorSpec| base.params().find(&spec.name);
        let holding = |spec: &TensorSpec| match shared(spec) {
            Some(param) if in_trunk(&spec.name, layers) => Holding::Shared(param),
            _ => Holding::Own(training),
        };
        Self::load_sharing(folder, head, seed, holding, base.params().device())
    }

    /// Makes sure that a trunk of so many layers is there.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_depth(&self, layers: usize) -> Result<(), ModelError> {
        let found = self.decoder_config().num_hidden_layers;
        match layers <= found {
            true => Ok(()),
            false => Err(ModelError::TrunkLayers { layers, found }),
        }
    }

    /// Makes sure that the model in `folder` was trained on this decoder's trunk: a branch means nothing on another. A folder of a
    /// 16-bit type holds a trunk that was rounded when it was written, and is held against this one, rounded likewise.
    ///
    /// # Errors
    /// If the lowest layers differ, with the fingerprints of both, or a file cannot be read.
    pub fn check_trunk(&self, layers: usize, folder: &Path) -> Result<(), ModelError> {
        let (stored, specs) = (
            Stored::open(folder)?,
            HfConfig::read(folder)?.decoder.tensors(),
        );
        let mut sums = FingerprintBuilder::default();
        for spec in specs.iter().filter(|spec| in_trunk(&spec.name, layers)) {
            sums.add(&spec.name, &stored.load(spec)?);
        }
        let found = sums.finish();
        let exact = self.trunk_fingerprint(layers, |x| x)?;
        if found == exact
            || found == self.trunk_fingerprint(layers, |x| bf16::from_f32(x).to_f32())?
            || found == self.trunk_fingerprint(layers, |x| f16::from_f32(x).to_f32())?
        {
            return Ok(());
        }
        Err(ModelError::OtherTrunk {
            folder: folder.to_owned(),
            layers,
            expected: exact.to_string(),
            found: found.to_string(),
        })
    }

    /// That of the trunk, its values rounded by `round`.
    fn trunk_fingerprint(
        &self,
        layers: usize,
        round: impl Fn(f32) -> f32,
    ) -> Result<Fingerprint, ModelError> {
        let mut sums = FingerprintBuilder::default();
        for param in self.params().iter().filter(|p| in_trunk(p.name(), layers)) {
            let rounded =
                param.read(|values| values.iter().map(|&x| round(x)).collect::<Vec<_>>())?;
            sums.add(param.name(), &rounded);
        }
        Ok(sums.finish())
    }
}
