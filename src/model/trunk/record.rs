//! The record of a model's trunk in its folder: the number of layers that stayed frozen below
//! trained ones, and their fingerprint.
//!
//! The record is in the header of each weights file. Other readers ignore it, and programs that
//! rewrite the weights drop it. The weights themselves determine the trunk; for a 16-bit file, the
//! record identifies the trunk whose rounded values it holds.

use std::collections::BTreeMap;

use crate::model::decoder::Decoder;
use crate::model::fingerprint::Fingerprint;
use crate::model::weights::Weights;

use super::{in_trunk, layers_below};

const LAYERS: &str = "trunk_layers";
const FINGERPRINT: &str = "trunk_fingerprint";

/// The trunk that a model was trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrunkRecord {
    /// Number of layers; the embedding belongs to the trunk too.
    layers: usize,
    /// Fingerprint of the values in training, whatever type they are stored in.
    fingerprint: String,
}

impl TrunkRecord {
    /// The record of a trunk of `layers` layers.
    pub fn new(layers: usize, fingerprint: Fingerprint) -> Self {
        Self {
            layers,
            fingerprint: fingerprint.to_string(),
        }
    }

    /// The record of a decoder's layers below its lowest trained one; `None` if there are no such
    /// layers, or no parameter is trained.
    ///
    /// # Errors
    /// If the device fails.
    pub fn of(decoder: &Decoder) -> candle_core::Result<Option<Self>> {
        let mut trained = decoder.params().trained().map(|p| p.name()).peekable();
        if trained.peek().is_none() {
            return Ok(None);
        }
        let layers = layers_below(trained, decoder.decoder_config().num_hidden_layers);
        if layers == 0 {
            return Ok(None);
        }
        let trunk = decoder.params().iter();
        let trunk = trunk.filter(|param| in_trunk(param.name(), layers));
        Ok(Some(Self::new(layers, Fingerprint::of(trunk)?)))
    }

    /// The record in the weights files, if all files have the same one.
    pub fn read(weights: &Weights) -> Option<Self> {
        Some(Self {
            layers: weights.note(LAYERS)?.parse().ok()?,
            fingerprint: weights.note(FINGERPRINT)?.to_owned(),
        })
    }

    /// Fingerprint of the trunk.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether both records have the same number of layers and different fingerprints.
    pub fn contradicts(&self, other: &Self) -> bool {
        self.layers == other.layers && self.fingerprint != other.fingerprint
    }

    /// Entries for the header of a weights file.
    pub fn notes(self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (LAYERS.to_owned(), self.layers.to_string()),
            (FINGERPRINT.to_owned(), self.fingerprint),
        ])
    }
}
