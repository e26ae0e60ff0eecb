//! What each role owns: a list of tensors, by a rule of what roles hold in common.
//!
//! A decoder's tensors are those that its configuration lists; a rule says which of them a role brings itself. What several roles
//! hold in common stands once, as a row of its own.

use crate::model::config::{
    DecoderConfig, Head, SCORE, TensorSpec, is_embedding, layer_of, weight,
};
use crate::model::lora::{Lora, LoraError, RequestedLora};
use crate::model::trunk::in_trunk;
use crate::ops::param::Trainability;
use crate::roles::{Reference, Sharing};

/// The models that the roles of PPO are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Models {
    /// The policy, which is the reference too where there is one.
    pub policy: Start,
    /// Whether the reference is loaded.
    pub reference: Reference,
    /// What the critic starts from, with its scalar head; none where there is no critic.
    pub critic: Option<Start>,
    /// The reward models.
    pub rewards: Vec<Start>,
    /// The reward model of evaluations.
    pub judge: Option<Judge>,
}

/// A judge, which shares what the roles have in common if it can.
#[derive(Clone, Debug, PartialEq)]
pub enum Judge {
    /// It cannot.
    Alone(DecoderConfig),
    /// It was trained on the same ground.
    Sharing(Start),
}

impl Judge {
    /// The judge that shares.
    pub fn sharing(&self) -> Option<&Start> {
        match self {
            Self::Alone(_) => None,
            Self::Sharing(start) => Some(start),
        }
    }
}

/// A model, and the adapters that make it of its base.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// The model, with its head.
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
    pub training: Trainability,
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
        training: Trainability,
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
        let trained = |owned: &&Owned| owned.training == Trainability::Trained;
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

/// The roles of PPO, and before them what they share.
///
/// # Errors
/// If a model cannot have the adapters.
pub fn roles(sharing: &Sharing, models: &Models) -> Result<Vec<Role>, LoraError> {
    let mut roles = match sharing {
        Sharing::None => branches(models, 0),
        Sharing::Trunk { layers } => {
            let mut trunk = models.policy.decoder.tensors();
            trunk.retain(|spec| in_trunk(&spec.name, *layers));
            let mut roles = vec![Role::new("trunk", trunk, Trainability::Frozen)];
            roles.extend(branches(models, *layers));
            roles
        }
        Sharing::Adapter(asked) => adapters(models, asked.as_ref())?,
    };
    let count = models.rewards.len();
    let rewards = models.rewards.iter().enumerate().map(|(i, reward)| {
        let name = match count {
            1 => "reward".to_owned(),
            _ => format!("reward {}", i + 1),
        };
        Role::new(name, scorer(sharing, reward), Trainability::Frozen)
    });
    roles.extend(rewards);
    let judge = models.judge.iter().map(|judge| match judge {
        Judge::Alone(decoder) => decoder.tensors(),
        Judge::Sharing(start) => scorer(sharing, start),
    });
    roles.extend(judge.map(|tensors| Role::new("judge", tensors, Trainability::Frozen)));
    Ok(roles)
}

/// Actor, critic and reference, those of them that there are, above a trunk of so many layers; of none, whole.
fn branches(models: &Models, layers: usize) -> Vec<Role> {
    let (policy, critic) = (&models.policy.decoder, models.critic.as_ref());
    let mut roles = vec![Role::new(
        "actor",
        above(policy, layers),
        Trainability::Trained,
    )];
    let critic = critic.map(|critic| above(&critic.decoder, layers));
    roles.extend(critic.map(|tensors| Role::new("critic", tensors, Trainability::Trained)));
    if models.reference == Reference::Read {
        let tensors = above(policy, layers);
        roles.push(Role::new("reference", tensors, Trainability::Frozen));
    }
    roles
}

/// What a decoder has above a trunk of so many layers, if there is a trunk.
fn above(decoder: &DecoderConfig, layers: usize) -> Vec<TensorSpec> {
    let mut tensors = decoder.tensors();
    tensors.retain(|spec| layers == 0 || !in_trunk(&spec.name, layers));
    tensors
}

/// The base with actor and critic, whose adapters are those that they start with or else those that are asked for. A policy that has
/// adapters leaves a frozen copy of them to the reference.
fn adapters(models: &Models, asked: Option<&RequestedLora>) -> Result<Vec<Role>, LoraError> {
    let (policy, trained) = (&models.policy, Trainability::Trained);
    let fresh = asked.map(RequestedLora::fresh).unwrap_or_default();
    let of = |start: &Start| match &start.adapter {
        Some(lora) => Ok(lora.tensors()),
        None => fresh.resolve(&start.decoder).map(|lora| lora.tensors()),
    };
    let mut roles = vec![
        Role::new("base", policy.decoder.tensors(), Trainability::Frozen),
        Role::new("actor", of(policy)?, trained),
    ];
    if let Some(critic) = &models.critic {
        let tensors = of(critic)?.into_iter().chain(score(&critic.decoder));
        roles.push(Role::new("critic", tensors, trained));
    }
    if policy.adapter.is_some() && models.reference == Reference::Read {
        roles.push(Role::new("reference", of(policy)?, Trainability::Frozen));
    }
    Ok(roles)
}

fn scorer(sharing: &Sharing, start: &Start) -> Vec<TensorSpec> {
    match (sharing, &start.adapter) {
        (Sharing::Adapter(_), Some(lora)) => {
            let tensors = lora.tensors().into_iter();
            tensors.chain(score(&start.decoder)).collect()
        }
        (Sharing::Trunk { layers }, _) => above(&start.decoder, *layers),
        _ => start.decoder.tensors(),
    }
}

/// A model that a supervised stage trains as `training` says.
pub fn whole(decoder: &DecoderConfig, training: impl Fn(&TensorSpec) -> Trainability) -> Vec<Role> {
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
pub fn adapted(base: &DecoderConfig, head: Head, lora: &Lora) -> Vec<Role> {
    let mut decoder = base.clone();
    decoder.head = head;
    let adapters = lora.tensors().into_iter();
    vec![
        Role::new("base", base.tensors(), Trainability::Frozen),
        Role::new(
            "adapters",
            adapters.chain(score(&decoder)),
            Trainability::Trained,
        ),
    ]
}

/// The scalar head, if the model has one.
fn score(decoder: &DecoderConfig) -> impl Iterator<Item = TensorSpec> {
    let is_score = |spec: &TensorSpec| spec.name == weight(SCORE);
    decoder.tensors().into_iter().filter(is_score)
}
