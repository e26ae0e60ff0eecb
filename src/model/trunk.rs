//! The trunk: the embedding and the lowest layers of a frozen decoder, which other decoders share.

mod record;

use std::path::Path;

use half::{bf16, f16};

use super::config::{DecoderConfig, TensorSpec, is_embedding, layer_of};
use super::decoder::{Decoder, Holding};
use super::error::ModelError;
use super::fingerprint::{Fingerprint, FingerprintBuilder};
use super::hf_config::HfConfig;
use super::lora::StoredModel;
use crate::model::config::Head;
use crate::ops::param::Trainability;

pub use record::TrunkRecord;

/// Rounding of a value to each 16-bit type.
const ROUNDINGS: [fn(f32) -> f32; 2] = [
    |x| bf16::from_f32(x).to_f32(),
    |x| f16::from_f32(x).to_f32(),
];

/// Whether a tensor belongs to a trunk of `layers` layers.
pub fn in_trunk(name: &str, layers: usize) -> bool {
    layer_of(name).map_or(is_embedding(name), |layer| layer < layers)
}

/// The number of lowest layers, out of `layers`, below all tensors in `trained`: 0 if an embedding
/// is among them, `layers` if none belongs to a layer.
pub fn layers_below<'a>(trained: impl Iterator<Item = &'a str>, layers: usize) -> usize {
    let below = |name: &str| match layer_of(name) {
        Some(layer) => layer,
        None if is_embedding(name) => 0,
        None => layers,
    };
    trained.map(below).min().unwrap_or(layers)
}

impl Decoder {
    /// Reads a folder's upper layers, norm and head on top of the trunk of `base`; the folder's own
    /// trunk is not read. `training` is that of the branch.
    ///
    /// # Errors
    /// As [`Decoder::load_sharing`].
    pub fn load_on_trunk(
        base: &Decoder,
        layers: usize,
        folder: &Path,
        head: Head,
        seed: u64,
        training: Trainability,
    ) -> Result<Self, ModelError> {
        let shared = |spec: &TensorSpec| base.params().find(&spec.name);
        let holding = |spec: &TensorSpec| match shared(spec) {
            Some(param) if in_trunk(&spec.name, layers) => Holding::Shared(param),
            _ => Holding::Own(training),
        };
        Self::load_sharing(folder, head, seed, holding, base.params().backend())
    }

    /// The trunk of `layers` layers, with which other models are compared.
    ///
    /// # Errors
    /// If the device fails.
    pub fn trunk(&self, layers: usize) -> Result<Trunk<'_>, ModelError> {
        Trunk::new(Base::Decoder(self), layers)
    }
}

/// The lowest layers of a model, with which other models are compared: a branch is only valid on
/// its own trunk.
pub struct Trunk<'d> {
    base: Base<'d>,
    layers: usize,
    fingerprint: Fingerprint,
}

/// A model with a trunk.
enum Base<'d> {
    Decoder(&'d Decoder),
    Folder(Box<(StoredModel, DecoderConfig)>),
}

impl Trunk<'static> {
    /// The trunk of the model in `folder`.
    ///
    /// # Errors
    /// If the model cannot be read.
    pub fn in_folder(folder: &Path, layers: usize) -> Result<Self, ModelError> {
        let config = HfConfig::read(folder)?.decoder;
        let base = Base::Folder(Box::new((StoredModel::open(folder)?, config)));
        Self::new(base, layers)
    }
}

impl<'d> Trunk<'d> {
    fn new(base: Base<'d>, layers: usize) -> Result<Self, ModelError> {
        Ok(Self {
            fingerprint: base.fingerprint(layers, |x| x)?,
            base,
            layers,
        })
    }

    /// Checks that the model in `folder` was trained on this trunk, by the fingerprint of its
    /// tensors. A folder of a 16-bit type holds a rounded trunk, which is compared with this one
    /// after the same rounding; if the folder records the fingerprint of the trunk before rounding,
    /// it must be this one's.
    ///
    /// # Errors
    /// If the lowest layers differ, with both fingerprints; if they have the same weights in
    /// another architecture; or if a file cannot be read.
    pub fn check(&self, folder: &Path) -> Result<(), ModelError> {
        let (stored, config) = (StoredModel::open(folder)?, HfConfig::read(folder)?.decoder);
        let record = match &stored {
            StoredModel::Whole(weights) => TrunkRecord::read(weights),
            _ => None,
        };
        let alike = computes_alike(self.base.config(), &config, self.layers);
        let other = Base::Folder(Box::new((stored, config)));
        self.compare(&other, record.as_ref(), folder)?;
        match alike {
            true => Ok(()),
            false => Err(ModelError::OtherLayers {
                folder: folder.to_owned(),
                layers: self.layers,
            }),
        }
    }

    fn compare(
        &self,
        other: &Base,
        record: Option<&TrunkRecord>,
        folder: &Path,
    ) -> Result<(), ModelError> {
        let found = other.fingerprint(self.layers, |x| x)?;
        if found == self.fingerprint {
            return Ok(());
        }
        let mine = TrunkRecord::new(self.layers, self.fingerprint);
        for round in &ROUNDINGS {
            if found == self.base.fingerprint(self.layers, round)? {
                return match record.filter(|record| record.contradicts(&mine)) {
                    None => Ok(()),
                    Some(record) => Err(self.other_trunk(folder, record.fingerprint().to_owned())),
                };
            }
        }
        Err(self.other_trunk(folder, found.to_string()))
    }

    fn other_trunk(&self, folder: &Path, found: String) -> ModelError {
        ModelError::OtherTrunk {
            folder: folder.to_owned(),
            layers: self.layers,
            expected: self.fingerprint.to_string(),
            found,
        }
    }
}

impl Base<'_> {
    fn config(&self) -> &DecoderConfig {
        match self {
            Self::Decoder(decoder) => decoder.decoder_config(),
            Self::Folder(model) => &model.1,
        }
    }

    /// Calls `read` with a tensor's values; `None` if there is no such tensor of that shape.
    fn read<R>(
        &self,
        spec: &TensorSpec,
        read: impl FnOnce(&[f32]) -> R,
    ) -> Result<Option<R>, ModelError> {
        match self {
            Self::Decoder(decoder) => {
                let param = decoder.params().find(&spec.name);
                let param = param.filter(|param| param.dims() == spec.shape);
                Ok(param.map(|param| param.read(read)).transpose()?)
            }
            Self::Folder(model) => Ok(Some(read(&model.0.load(spec)?))),
        }
    }

    /// The trunk's fingerprint, with values rounded by `round`.
    fn fingerprint(
        &self,
        layers: usize,
        round: impl Fn(f32) -> f32,
    ) -> Result<Fingerprint, ModelError> {
        let mut sums = FingerprintBuilder::default();
        for spec in trunk_of(self.config(), layers) {
            self.read(&spec, |values| {
                let rounded: Vec<f32> = values.iter().map(|&x| round(x)).collect();
                sums.add(&spec.name, &rounded);
            })?;
        }
        Ok(sums.finish())
    }
}

/// Tensors of a trunk of `layers` layers.
fn trunk_of(config: &DecoderConfig, layers: usize) -> impl Iterator<Item = TensorSpec> {
    let tensors = config.tensors().into_iter();
    tensors.filter(move |spec| in_trunk(&spec.name, layers))
}

/// Whether the lowest layers of two decoders give the same results with the same tensors.
fn computes_alike(a: &DecoderConfig, b: &DecoderConfig, layers: usize) -> bool {
    let heads = |c: &DecoderConfig| [c.num_attention_heads, c.num_key_value_heads, c.head_dim];
    let kinds = |c: &DecoderConfig| (c.norm, c.position, c.activation, c.qk_norm);
    let windows = |c: &DecoderConfig| (0..layers).map(|layer| c.window(layer)).collect::<Vec<_>>();
    heads(a) == heads(b) && kinds(a) == kinds(b) && windows(a) == windows(b)
}
