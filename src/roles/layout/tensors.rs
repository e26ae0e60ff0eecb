//! Lists of tensors with their memory: weights, gradients and moments.

use crate::model::config::{DecoderConfig, Head, SCORE, TensorSpec, weight};
use crate::model::lora::Lora;
use crate::model::trunk::layers_below;
use crate::ops::param::Trainability;

/// A tensor that a role owns.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedTensor {
    /// Name and shape of the tensor.
    pub spec: TensorSpec,
    /// Whether the tensor has a gradient and moments.
    pub training: Trainability,
}

/// The tensors that one role owns, or that several roles share.
#[derive(Clone, Debug, PartialEq)]
pub struct RoleTensors {
    /// The name of the role in the table of a plan.
    pub name: String,
    /// The tensors.
    pub tensors: Vec<OwnedTensor>,
}

impl RoleTensors {
    /// A list of tensors that are all trained, or all frozen.
    pub fn new(
        name: impl Into<String>,
        specs: impl IntoIterator<Item = TensorSpec>,
        training: Trainability,
    ) -> Self {
        let owned = |spec| OwnedTensor { spec, training };
        Self {
            name: name.into(),
            tensors: specs.into_iter().map(owned).collect(),
        }
    }

    /// A whole model, each tensor trained or frozen by `training`.
    pub fn whole(decoder: &DecoderConfig, training: impl Fn(&TensorSpec) -> Trainability) -> Self {
        let owned = |spec: TensorSpec| OwnedTensor {
            training: training(&spec),
            spec,
        };
        Self {
            name: "model".to_owned(),
            tensors: decoder.tensors().into_iter().map(owned).collect(),
        }
    }

    /// A frozen base, and trained adapters on it, with a scalar head if `head` is one.
    pub fn adapted(base: &DecoderConfig, head: Head, lora: &Lora) -> [Self; 2] {
        let mut decoder = base.clone();
        decoder.head = head;
        let own = adapters_and_head(lora, &decoder);
        [
            Self::new("base", base.tensors(), Trainability::Frozen),
            Self::new("adapters", own, Trainability::Trained),
        ]
    }

    /// Bytes of the weights.
    pub fn weights(&self) -> usize {
        bytes(self.tensors.iter())
    }

    /// Bytes of the gradients: those of the trained weights.
    pub fn gradients(&self) -> usize {
        bytes(self.trained())
    }

    /// Bytes of AdamW's two moments.
    pub fn moments(&self) -> usize {
        2 * self.gradients()
    }

    /// Bytes of weights, gradients and moments.
    pub fn bytes(&self) -> usize {
        self.weights() + self.gradients() + self.moments()
    }

    fn trained(&self) -> impl Iterator<Item = &OwnedTensor> {
        let trained = |owned: &&OwnedTensor| owned.training == Trainability::Trained;
        self.tensors.iter().filter(trained)
    }

    /// The lowest of `layers` layers that a gradient flows through: the first with a trained
    /// tensor, or layer 0 if embeddings are trained; `layers` if no layer has one.
    pub fn graph_begins(&self, layers: usize) -> usize {
        layers_below(self.trained().map(|owned| owned.spec.name.as_str()), layers)
    }
}

fn bytes<'a>(tensors: impl Iterator<Item = &'a OwnedTensor>) -> usize {
    let elements: usize = tensors.map(|owned| owned.spec.numel()).sum();
    elements * size_of::<f32>()
}

/// The tensors of the adapters and, if the model has one, of its scalar head.
pub(super) fn adapters_and_head(lora: &Lora, decoder: &DecoderConfig) -> Vec<TensorSpec> {
    let is_score = |spec: &TensorSpec| spec.name == weight(SCORE);
    let score = decoder.tensors().into_iter().filter(is_score);
    lora.tensors().into_iter().chain(score).collect()
}
