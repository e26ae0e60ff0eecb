//! What a model folder says of its trunk: how many of the lowest layers stayed frozen while others were trained, and their fingerprint.
//!
//! It stands in the header of each file of weights. Readers that do not know it pass it over, and programs that write the weights anew
//! leave it out. What lies in a file decides what trunk it holds; the record says of which one a 16-bit file holds the rounded values.

use std::collections::BTreeMap;

use crate::model::config::{is_embedding, layer_of};
use crate::model::decoder::Decoder;
use crate::model::fingerprint::Fingerprint;
use crate::model::weights::Weights;
use crate::ops::param::Param;

use super::in_trunk;

const LAYERS: &str = "trunk_layers";
const FINGERPRINT: &str = "trunk_fingerprint";

/// The trunk that a model was trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrunkRecord {
    /// Its layers; the embedding belongs to it too.
    layers: usize,
    /// Of its values as they were in training, whatever type they are written in.
    fingerprint: String,
}

impl TrunkRecord {
    /// A trunk of so many layers, with this fingerprint.
    pub fn new(layers: usize, fingerprint: Fingerprint) -> Self {
        Self {
            layers,
            fingerprint: fingerprint.to_string(),
        }
    }

    /// That of a decoder: the layers below its lowest trained one. `None` where there are none, or nothing is trained.
    ///
    /// # Errors
    /// If a device fails.
    pub fn of(decoder: &Decoder) -> candle_core::Result<Option<Self>> {
        let all = decoder.decoder_config().num_hidden_layers;
        let frozen_below = |param: &Param| match layer_of(param.name()) {
            Some(layer) => layer,
            None if is_embedding(param.name()) => 0,
            None => all,
        };
        let trained = decoder.params().trained();
        let layers = trained.map(|param| frozen_below(param)).min();
        let Some(layers) = layers.filter(|&layers| layers > 0) else {
            return Ok(None);
        };
        let trunk = decoder.params().iter();
        let trunk = trunk.filter(|param| in_trunk(param.name(), layers));
        Ok(Some(Self::new(layers, Fingerprint::of(trunk)?)))
    }

    /// What the files of weights say, if all say the same.
    pub fn read(weights: &Weights) -> Option<Self> {
        Some(Self {
            layers: weights.note(LAYERS)?.parse().ok()?,
            fingerprint: weights.note(FINGERPRINT)?.to_owned(),
        })
    }

    /// The fingerprint.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether the two speak of as many layers and of other values.
    pub fn contradicts(&self, other: &Self) -> bool {
        self.layers == other.layers && self.fingerprint != other.fingerprint
    }

    /// What the header of a file of weights is to say.
    pub fn notes(self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (LAYERS.to_owned(), self.layers.to_string()),
            (FINGERPRINT.to_owned(), self.fingerprint),
        ])
    }
}
