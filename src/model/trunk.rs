//! The trunk: the embedding and the lowest layers of a frozen decoder, which others hold in common with it.

mod record;

use std::path::Path;

use half::{bf16, f16};

use super::config::{DecoderConfig, TensorSpec, is_embedding, layer_of};
use super::decoder::{Decoder, Holding};
use super::error::ModelError;
use super::fingerprint::{Fingerprint, FingerprintBuilder};
use super::hf_config::HfConfig;
use super::lora::Stored;
use super::weights::Weights;
use crate::model::config::Head;
use crate::ops::param::Training;

pub use record::TrunkRecord;

/// Places of a tensor that are looked at to see whether a record of it is still true.
const LOOKS: usize = 16;

/// What writing in each of the types makes of a value; in `f32` nothing.
const ROUNDINGS: [fn(f32) -> f32; 3] = [
    |x| x,
    |x| bf16::from_f32(x).to_f32(),
    |x| f16::from_f32(x).to_f32(),
];

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

    /// The trunk of so many layers, to hold other models against it.
    ///
    /// # Errors
    /// If a device fails.
    pub fn trunk(&self, layers: usize) -> Result<Trunk<'_>, ModelError> {
        Trunk::new(Base::Decoder(self), layers)
    }
}

/// The lowest layers of a model, against which others are held: a branch means nothing on another trunk.
pub struct Trunk<'d> {
    base: Base<'d>,
    layers: usize,
    fingerprint: Fingerprint,
}

/// What has a trunk.
enum Base<'d> {
    Decoder(&'d Decoder),
    Folder(Box<(Stored, DecoderConfig)>),
}

impl Trunk<'static> {
    /// That of the model in `folder`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn in_folder(folder: &Path, layers: usize) -> Result<Self, ModelError> {
        let config = HfConfig::read(folder)?.decoder;
        let base = Base::Folder(Box::new((Stored::open(folder)?, config)));
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

    /// Makes sure that the model in `folder` was trained on this trunk. Where the folder says by its fingerprint which trunk that was, and
    /// it is this one, its tensors are looked at here and there; otherwise they are summed. A folder of a 16-bit type holds a trunk that
    /// was rounded when it was written, and is held against this one, rounded likewise.
    ///
    /// # Errors
    /// If the lowest layers differ, with the fingerprints of both, or are computed in another way, or a file cannot be read.
    pub fn check(&self, folder: &Path) -> Result<(), ModelError> {
        let (stored, config) = (Stored::open(folder)?, HfConfig::read(folder)?.decoder);
        let recorded = self.is_recorded(&stored, &config)?;
        let alike = computes_alike(self.base.config(), &config, self.layers);
        let other = Base::Folder(Box::new((stored, config)));
        if !recorded {
            self.compare(&other, folder)?;
        }
        match alike {
            true => Ok(()),
            false => Err(ModelError::OtherLayers {
                folder: folder.to_owned(),
                layers: self.layers,
            }),
        }
    }

    /// Sums the other's tensors.
    fn compare(&self, other: &Base, folder: &Path) -> Result<(), ModelError> {
        let found = other.fingerprint(self.layers, |x| x)?;
        if found == self.fingerprint {
            return Ok(());
        }
        for round in &ROUNDINGS[1..] {
            if found == self.base.fingerprint(self.layers, round)? {
                return Ok(());
            }
        }
        Err(ModelError::OtherTrunk {
            folder: folder.to_owned(),
            layers: self.layers,
            expected: self.fingerprint.to_string(),
            found: found.to_string(),
        })
    }

    /// Whether the folder's record says that its trunk is this one, and nothing that is seen of the tensors contradicts that.
    fn is_recorded(&self, stored: &Stored, config: &DecoderConfig) -> Result<bool, ModelError> {
        let Stored::Whole(weights) = stored else {
            return Ok(false);
        };
        let mine = TrunkRecord::new(self.layers, self.fingerprint);
        if TrunkRecord::read(weights) != Some(mine) {
            return Ok(false);
        }
        for spec in trunk_of(config, self.layers) {
            if !self.looks_alike(&spec, weights)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the tensor is the trunk's in some of its places, rounded to the type that it was written in.
    fn looks_alike(&self, spec: &TensorSpec, weights: &Weights) -> Result<bool, ModelError> {
        let places: Vec<usize> = (0..LOOKS).map(|i| i * spec.numel() / LOOKS).collect();
        let found = weights.load_at(spec, &places)?;
        let is_same = |(x, found): (f32, &f32)| {
            let mut rounded = ROUNDINGS.iter().map(|round| round(x).to_bits());
            rounded.any(|bits| bits == found.to_bits())
        };
        let same = self.base.read(spec, |values| {
            let ours = places.iter().map(|&place| values[place]);
            ours.zip(&found).all(is_same)
        })?;
        Ok(same == Some(true))
    }
}

impl Base<'_> {
    fn config(&self) -> &DecoderConfig {
        match self {
            Self::Decoder(decoder) => decoder.decoder_config(),
            Self::Folder(model) => &model.1,
        }
    }

    /// Calls `read` on a tensor's values; `None` where there is no such tensor of that shape.
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

    /// That of the trunk, its values rounded by `round`.
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

/// The tensors of a trunk.
fn trunk_of(config: &DecoderConfig, layers: usize) -> impl Iterator<Item = TensorSpec> {
    let tensors = config.tensors().into_iter();
    tensors.filter(move |spec| in_trunk(&spec.name, layers))
}

/// Whether two decoders do the same in their lowest layers with the same tensors.
fn computes_alike(a: &DecoderConfig, b: &DecoderConfig, layers: usize) -> bool {
    let heads = |c: &DecoderConfig| [c.num_attention_heads, c.num_key_value_heads, c.head_dim];
    let kinds = |c: &DecoderConfig| (c.norm, c.position, c.activation, c.qk_norm);
    let windows = |c: &DecoderConfig| (0..layers).map(|layer| c.window(layer)).collect::<Vec<_>>();
    heads(a) == heads(b) && kinds(a) == kinds(b) && windows(a) == windows(b)
}
