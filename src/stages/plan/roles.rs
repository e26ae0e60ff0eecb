//! What each role owns: a list of tensors, by a rule of what roles hold in common.
//!
//! A decoder's tensors are those that its configuration lists; a rule says which of them a role brings itself. What several roles
//! hold in common stands once, as a row of its own.

use crate::model::config::{
    DecoderConfig, Head, SCORE, TensorSpec, is_embedding, layer_of, weight,
};
use crate::model::lora::{Lora, LoraConfig, LoraError};
use crate::ops::param::Training;

/// What the roles of PPO hold in common.
#[derive(Clone, Debug, PartialEq)]
pub enum Sharing {
    /// Nothing.
    None,
    /// The embeddings and the lowest layers, frozen.
    Trunk {
        /// How many layers.
        layers: usize,
    },
    /// The whole frozen model, which is the reference; the other roles are adapters on it.
    Adapter(LoraConfig),
}

/// The models that the roles of PPO are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Models {
    /// The policy, which is the reference too.
    pub policy: DecoderConfig,
    /// What the critic starts from, with its scalar head; none where there is no critic.
    pub critic: Option<DecoderConfig>,
    /// The reward models.
    pub rewards: Vec<Scorer>,
    /// The reward model of evaluations.
    pub judge: Option<DecoderConfig>,
}

/// A reward model.
#[derive(Clone, Debug, PartialEq)]
pub struct Scorer {
    /// The model, with its scalar head.
    pub decoder: DecoderConfig,
    /// Its adapters, where its folder is a PEFT folder.
    pub adapter: Option<Lora>,
}

/// A tensor of a role.
#[derive(Clone, Debug, PartialEq)]
pub struct Owned {
    /// Name and shape.
    pub spec: TensorSpec,
    /// Whether it has a gradient and moments.
    pub training: Training,
}

/// A role, with the tensors that nobody holds but it.
#[derive(Clone, Debug, PartialEq)]
pub struct Role {
    /// What the table calls it.
    pub name: String,
    /// Its own tensors.
    pub tensors: Vec<Owned>,
}

impl Role {
    /// A role whose tensors are all trained, or all frozen.
    pub fn new(
        name: impl Into<String>,
        specs: impl IntoIterator<Item = TensorSpec>,
        training: Training,
    ) -> Self {
        let owned = |spec| Owned { spec, training };
        Self {
            name: name.into(),
            tensors: specs.into_iter().map(owned).collect(),
        }
    }

    /// Bytes of the weights.
    pub fn weights(&self) -> usize {
        bytes(self.tensors.iter())
    }

    /// Bytes of the gradients, as large as the trained weights.
    pub fn gradients(&self) -> usize {
        bytes(self.trained())
    }

    /// Bytes of AdamW's two moments.
    pub fn moments(&self) -> usize {
        2 * self.gradients()
    }

    /// All of these.
    pub fn bytes(&self) -> usize {
        self.weights() + self.gradients() + self.moments()
    }

    /// The tensors that are trained.
    pub fn trained(&self) -> impl Iterator<Item = &Owned> {
        let trained = |owned: &&Owned| owned.training == Training::Trained;
        self.tensors.iter().filter(trained)
    }

    /// The lowest of `layers` layers that a gradient flows through: the first one with a trained tensor, and the lowest of all below
    /// trained embeddings. `layers` where none has any.
    pub fn graph_begins(&self, layers: usize) -> usize {
        let begins = |owned: &Owned| match layer_of(&owned.spec.name) {
            Some(layer) => layer,
            None if is_embedding(&owned.spec.name) => 0,
            None => layers,
        };
        self.trained().map(begins).min().unwrap_or(layers)
    }
}

fn bytes<'a>(tensors: impl Iterator<Item = &'a Owned>) -> usize {
    let elements: usize = tensors.map(|owned| owned.spec.numel()).sum();
    elements * size_of::<f32>()
}

impl Sharing {
    /// The roles of PPO, and before them what they share.
    ///
    /// # Errors
    /// If a model cannot have the adapters.
    pub fn roles(&self, models: &Models) -> Result<Vec<Role>, LoraError> {
        let (trained, frozen) = (Training::Trained, Training::Frozen);
        let (policy, critic) = (&models.policy, models.critic.as_ref());
        let mut roles = Vec::new();
        match self {
            Self::None | Self::Trunk { .. } => {
                roles.extend(self.trunk(policy));
                roles.push(Role::new("actor", self.own(policy), trained));
                roles.extend(critic.map(|c| Role::new("critic", self.own(c), trained)));
                roles.push(Role::new("reference", self.own(policy), frozen));
            }
            Self::Adapter(lora) => {
                let adapters = |decoder| lora.resolve(decoder).map(|lora| lora.tensors());
                roles.push(Role::new("base", policy.tensors(), frozen));
                roles.push(Role::new("actor", adapters(policy)?, trained));
                if let Some(critic) = critic {
                    let tensors = adapters(critic)?.into_iter().chain(score(critic));
                    roles.push(Role::new("critic", tensors, trained));
                }
            }
        }
        let count = models.rewards.len();
        let rewards = models.rewards.iter().enumerate().map(|(i, reward)| {
            let name = match count {
                1 => "reward".to_owned(),
                _ => format!("reward {}", i + 1),
            };
            Role::new(name, self.scorer(reward), frozen)
        });
        roles.extend(rewards);
        let judge = models.judge.iter();
        roles.extend(judge.map(|judge| Role::new("judge", judge.tensors(), frozen)));
        Ok(roles)
    }

    fn trunk(&self, policy: &DecoderConfig) -> Option<Role> {
        let Self::Trunk { layers } = self else {
            return None;
        };
        let inside = policy.tensors().into_iter();
        let inside = inside.filter(|spec| is_below(spec, *layers));
        Some(Role::new("trunk", inside, Training::Frozen))
    }

    /// What a decoder of its own has beside what it shares.
    fn own(&self, decoder: &DecoderConfig) -> Vec<TensorSpec> {
        let mut tensors = decoder.tensors();
        if let Self::Trunk { layers } = self {
            tensors.retain(|spec| !is_below(spec, *layers));
        }
        tensors
    }

    fn scorer(&self, scorer: &Scorer) -> Vec<TensorSpec> {
        match (self, &scorer.adapter) {
            (Self::Adapter(_), Some(lora)) => {
                let tensors = lora.tensors().into_iter();
                tensors.chain(score(&scorer.decoder)).collect()
            }
            (Self::Adapter(_), None) => scorer.decoder.tensors(),
            _ => self.own(&scorer.decoder),
        }
    }
}

/// A model that a supervised stage trains as `training` says.
pub fn whole(decoder: &DecoderConfig, training: impl Fn(&TensorSpec) -> Training) -> Vec<Role> {
    let owned = |spec: TensorSpec| Owned {
        training: training(&spec),
        spec,
    };
    vec![Role {
        name: "model".to_owned(),
        tensors: decoder.tensors().into_iter().map(owned).collect(),
    }]
}

/// Trained adapters, with a scalar head where the stage trains one, on a frozen base.
///
/// # Errors
/// If the base cannot have the adapters.
pub fn adapted(
    base: &DecoderConfig,
    head: Head,
    lora: &LoraConfig,
) -> Result<Vec<Role>, LoraError> {
    let mut decoder = base.clone();
    decoder.head = head;
    let adapters = lora.resolve(base)?.tensors().into_iter();
    Ok(vec![
        Role::new("base", base.tensors(), Training::Frozen),
        Role::new(
            "adapters",
            adapters.chain(score(&decoder)),
            Training::Trained,
        ),
    ])
}

/// The scalar head, if the model has one.
fn score(decoder: &DecoderConfig) -> impl Iterator<Item = TensorSpec> {
    let is_score = |spec: &TensorSpec| spec.name == weight(SCORE);
    decoder.tensors().into_iter().filter(is_score)
}

/// Whether a tensor belongs to the embeddings or to one of the lowest `layers` layers.
fn is_below(spec: &TensorSpec, layers: usize) -> bool {
    layer_of(&spec.name).map_or(is_embedding(&spec.name), |layer| layer < layers)
}
