//! The tensors that each role of PPO owns, shares and trains. The stage loads the roles by a
//! [`RoleLayout`], and `plan` computes the memory of the same layout.
//!
//! The roles share no tensors; or a trunk, the frozen embedding and lowest layers of the policy; or
//! a base, the whole frozen policy, on which each role has low-rank adapters (Hu et al. 2021) and
//! its head.
//!
//! A layout follows from the configuration and the descriptions of the model folders. Weights are
//! read in one case: whether an existing scorer was trained on the shared tensors is decided by
//! their checksums ([`sharing`]).

mod prompts;
mod sharing;
mod tensors;

use std::path::Path;

use super::RolesError;
use super::description::{ModelDescription, PpoModels};
use super::vocabulary::check_vocabulary;
use crate::config::{CriticFrom, LoraTable, Ppo, Share};
use crate::model::ModelError;
use crate::model::config::{Head, TensorSpec};
use crate::model::lora::Lora;
use crate::model::trunk::in_trunk;
use crate::ops::param::Trainability;

pub use prompts::PromptUse;
pub use tensors::{OwnedTensor, RoleTensors};

use tensors::adapters_and_head;

/// The tensors that the roles have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedTensors {
    /// No tensors are shared.
    None,
    /// The embedding and the lowest layers of the policy.
    Trunk {
        /// The number of layers.
        layers: usize,
    },
    /// All tensors of the policy, or of its base if the policy is an adapter.
    Base,
}

/// The tensors that a role has besides the shared ones.
#[derive(Clone, Debug, PartialEq)]
pub enum RoleWeights {
    /// All of the model's tensors; the role shares none.
    Whole,
    /// The layers above the trunk, the final norm and the head.
    Branch {
        /// The number of layers of the trunk.
        trunk_layers: usize,
    },
    /// The adapters and the head in the model's folder.
    Adapters(Lora),
    /// New adapters and a new head.
    NewAdapters(LoraTable, Lora),
    /// No tensors: the role is the shared base.
    Base,
}

/// One role: the model that it starts from and the tensors that it owns.
#[derive(Clone, Debug, PartialEq)]
pub struct RoleModel {
    /// The model that the role starts from, with the head of the role.
    pub model: ModelDescription,
    /// The tensors that the role owns.
    pub weights: RoleWeights,
    /// Whether the weights are trained.
    pub training: Trainability,
}

/// The roles of PPO and the tensors of each.
#[derive(Clone, Debug, PartialEq)]
pub struct RoleLayout {
    /// The tensors that the roles have in common.
    pub shared: SharedTensors,
    /// The model that the actor starts from.
    pub policy: ModelDescription,
    /// The policy that is trained and that generates.
    pub actor: RoleModel,
    /// The value function; `None` if the advantage estimator has no values.
    pub critic: Option<RoleModel>,
    /// The frozen start of the actor; `None` if nothing reads it.
    pub reference: Option<RoleModel>,
    /// The reward models, in the order of the configuration.
    pub rewards: Vec<RoleModel>,
    /// The reward model of evaluations.
    pub judge: Option<RoleModel>,
    /// The layer at whose input generation keeps the hidden states: all roles that start from them
    /// share the frozen layers below it. `None` if there are no such layers.
    pub boundary: Option<usize>,
}

impl RoleLayout {
    /// The layout of the roles that `[ppo]` describes.
    ///
    /// # Errors
    /// If a folder holds the wrong kind of model, a scorer has another vocabulary than the policy,
    /// a reward model is not trained on the shared tensors, the policy has too few layers for the
    /// trunk, or it cannot have the adapters.
    pub fn new(config: &Ppo, models: PpoModels) -> Result<Self, RolesError> {
        let PpoModels {
            policy,
            rewards,
            judge,
        } = models;
        check_head(&policy, Head::LanguageModel)?;
        let builder = Builder::new(config, &policy)?;
        let actor = builder.policy_role(Head::LanguageModel)?;
        let reward = |model: &ModelDescription| {
            let role = builder.scorer(model);
            role.map_err(|error| of_component(config, model, error))
        };
        let rewards: Vec<RoleModel> = rewards.iter().map(reward).collect::<Result<_, _>>()?;
        let reward_model = rewards.first();
        let reward_model =
            reward_model.filter(|_| config.critic.critic_from == Some(CriticFrom::RewardModel));
        let critic = config.has_critic().then(|| match reward_model {
            Some(role) => builder.critic_role(role),
            None => Ok(builder.policy_role(Head::Score)?),
        });
        let critic = critic.transpose()?;
        let judge = judge.map(|model| builder.judge(&model)).transpose();
        let judge = judge.map_err(|error| RolesError::Judge(Box::new(error)))?;
        let reference = config.reads_reference().then(|| builder.reference());
        let shared = builder.shared;
        Ok(Self {
            boundary: boundary(shared, [&actor].into_iter().chain(&critic).chain(&rewards)),
            shared,
            actor,
            critic,
            reference,
            rewards,
            judge,
            policy,
        })
    }

    /// The folder of the frozen model whose tensors the roles share.
    pub fn base(&self) -> &Path {
        match self.shared {
            SharedTensors::Base => self.policy.base(),
            SharedTensors::None | SharedTensors::Trunk { .. } => &self.policy.folder,
        }
    }

    /// True if a reward model or the judge starts from the states at the boundary.
    pub fn starts_at_boundary(&self, scorer: &RoleModel) -> bool {
        self.boundary.is_some_and(|layer| match &scorer.weights {
            RoleWeights::Branch { .. } => true,
            RoleWeights::Adapters(lora) => lora.lowest_layer() >= Some(layer),
            _ => false,
        })
    }

    /// The shared tensors, then the tensors of each role.
    pub fn tensors(&self) -> Vec<RoleTensors> {
        let policy = self.policy.decoder.tensors();
        let shared = match self.shared {
            SharedTensors::None => None,
            SharedTensors::Trunk { layers } => {
                let trunk = policy.into_iter();
                let trunk = trunk.filter(|spec| in_trunk(&spec.name, layers));
                Some(RoleTensors::new("trunk", trunk, Trainability::Frozen))
            }
            SharedTensors::Base => Some(RoleTensors::new("base", policy, Trainability::Frozen)),
        };
        let named = |name: &str, role: &RoleModel| role.named(name);
        let several = self.rewards.len() > 1;
        let rewards = self.rewards.iter().enumerate();
        let rewards = rewards.map(|(i, reward)| match several {
            true => reward.named(&format!("reward {}", i + 1)),
            false => reward.named("reward"),
        });
        // A reference that is the base has no tensors of its own.
        let reference = self.reference.iter();
        let reference = reference.filter(|role| role.weights != RoleWeights::Base);
        shared
            .into_iter()
            .chain([named("actor", &self.actor)])
            .chain(self.critic.iter().map(|role| named("critic", role)))
            .chain(reference.map(|role| named("reference", role)))
            .chain(rewards)
            .chain(self.judge.iter().map(|role| named("judge", role)))
            .collect()
    }
}

impl RoleModel {
    /// The tensors that the role owns.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let decoder = &self.model.decoder;
        match &self.weights {
            RoleWeights::Whole => decoder.tensors(),
            RoleWeights::Branch { trunk_layers } => {
                let mut tensors = decoder.tensors();
                tensors.retain(|spec| !in_trunk(&spec.name, *trunk_layers));
                tensors
            }
            RoleWeights::Adapters(lora) | RoleWeights::NewAdapters(_, lora) => {
                adapters_and_head(lora, decoder)
            }
            RoleWeights::Base => Vec::new(),
        }
    }

    /// The adapters of the role, if it consists of adapters.
    pub fn lora(&self) -> Option<&Lora> {
        match &self.weights {
            RoleWeights::Adapters(lora) | RoleWeights::NewAdapters(_, lora) => Some(lora),
            _ => None,
        }
    }

    /// The tensors that the role owns, with its name.
    pub fn named(&self, name: &str) -> RoleTensors {
        RoleTensors::new(name, self.tensors(), self.training)
    }
}

/// Decides for each role which tensors it owns.
struct Builder<'a> {
    shared: SharedTensors,
    policy: &'a ModelDescription,
    /// `[ppo.lora]`.
    lora: LoraTable,
}

impl<'a> Builder<'a> {
    fn new(config: &Ppo, policy: &'a ModelDescription) -> Result<Self, ModelError> {
        let keys = &config.sharing;
        let shared = match keys.share {
            Share::None => SharedTensors::None,
            Share::Trunk => SharedTensors::Trunk {
                layers: keys.trunk_layers.unwrap_or_default(),
            },
            Share::Adapter => SharedTensors::Base,
        };
        let found = policy.decoder.num_hidden_layers;
        match shared {
            SharedTensors::Trunk { layers } if layers > found => {
                Err(ModelError::TrunkLayers { layers, found })
            }
            _ => Ok(Self {
                shared,
                policy,
                lora: keys.lora.clone().unwrap_or_default(),
            }),
        }
    }

    /// The actor or the critic, trained, from the policy. The adapters of a policy are trained
    /// further.
    fn policy_role(&self, head: Head) -> Result<RoleModel, ModelError> {
        let model = self.policy.with_head(head);
        let weights = match self.shared {
            SharedTensors::None => RoleWeights::Whole,
            SharedTensors::Trunk { layers } => RoleWeights::Branch {
                trunk_layers: layers,
            },
            SharedTensors::Base => {
                let found = model.adapter.as_ref().map(|adapter| &adapter.lora);
                let (table, folder) = (&self.lora, &model.folder);
                let lora = Lora::trained(found, table, "ppo.lora", &model.decoder, folder)?;
                match found {
                    Some(_) => RoleWeights::Adapters(lora),
                    None => RoleWeights::NewAdapters(self.lora.clone(), lora),
                }
            }
        };
        Ok(RoleModel {
            model,
            weights,
            training: Trainability::Trained,
        })
    }

    /// The critic, trained, from a reward model, whose head already estimates the quality of a
    /// response (Stiennon et al. 2020).
    fn critic_role(&self, reward: &RoleModel) -> Result<RoleModel, RolesError> {
        if self.shared == SharedTensors::Base && reward.weights == RoleWeights::Whole {
            let needed = "an adapter on the policy's base ([reward.lora]), or \
                          ppo.critic_from = \"policy\",";
            return refuse(&reward.model, "a whole reward model", needed);
        }
        Ok(RoleModel {
            training: Trainability::Trained,
            ..reward.clone()
        })
    }

    /// The frozen start of the actor. If the actor trains the policy's adapters, the reference has
    /// a frozen copy of them.
    fn reference(&self) -> RoleModel {
        let weights = match (self.shared, &self.policy.adapter) {
            (SharedTensors::None, _) => RoleWeights::Whole,
            (SharedTensors::Trunk { layers }, _) => RoleWeights::Branch {
                trunk_layers: layers,
            },
            (SharedTensors::Base, Some(adapter)) => RoleWeights::Adapters(adapter.lora.clone()),
            (SharedTensors::Base, None) => RoleWeights::Base,
        };
        RoleModel {
            model: self.policy.clone(),
            weights,
            training: Trainability::Frozen,
        }
    }

    /// A frozen reward model. A whole model shares no tensors with adapters on a base.
    fn scorer(&self, model: &ModelDescription) -> Result<RoleModel, RolesError> {
        check_scorer(self.policy, model)?;
        let weights = match (self.shared, &model.adapter) {
            (SharedTensors::Trunk { layers }, _) => {
                sharing::check_trunk(model, self.policy, layers)?;
                RoleWeights::Branch {
                    trunk_layers: layers,
                }
            }
            (SharedTensors::Base, Some(adapter)) if !adapter.has_score => {
                let needed = "one with the scalar head that it was trained with \
                              (PEFT: modules_to_save = [\"score\"])";
                return refuse(model, "an adapter without score.weight", needed);
            }
            (SharedTensors::Base, Some(adapter)) => {
                sharing::check_base(model, adapter, self.policy)?;
                RoleWeights::Adapters(adapter.lora.clone())
            }
            (SharedTensors::Base, None) | (SharedTensors::None, _) => RoleWeights::Whole,
        };
        Ok(frozen(model, weights))
    }

    /// The judge: like a reward model if it was trained on the shared tensors, else a whole model.
    fn judge(&self, model: &ModelDescription) -> Result<RoleModel, RolesError> {
        check_scorer(self.policy, model)?;
        match self.scorer(model) {
            Err(error) if sharing::shares_nothing(&error) => Ok(frozen(model, RoleWeights::Whole)),
            role => role,
        }
    }
}

fn frozen(model: &ModelDescription, weights: RoleWeights) -> RoleModel {
    RoleModel {
        model: model.clone(),
        weights,
        training: Trainability::Frozen,
    }
}

/// The lowest layer that a role trains or adapts, if the frozen layers below it are shared.
fn boundary<'a>(
    shared: SharedTensors,
    roles: impl Iterator<Item = &'a RoleModel>,
) -> Option<usize> {
    let layer = match shared {
        SharedTensors::None => 0,
        SharedTensors::Trunk { layers } => layers,
        SharedTensors::Base => {
            let lowest = roles.filter_map(RoleModel::lora).map(Lora::lowest_layer);
            lowest.min().flatten().unwrap_or(0)
        }
    };
    (layer > 0).then_some(layer)
}

/// Refuses a model folder of the other kind.
fn check_scorer(policy: &ModelDescription, scorer: &ModelDescription) -> Result<(), RolesError> {
    check_head(scorer, Head::Score)?;
    check_vocabulary(policy, scorer)
}

/// The error of a reward model, with the name of its component if `[ppo]` names its folder.
fn of_component(config: &Ppo, scorer: &ModelDescription, error: RolesError) -> RolesError {
    let mut models = config.reward_models().into_iter();
    match models.find(|(_, folder)| *folder == scorer.folder) {
        Some((name, _)) => RolesError::RewardModel {
            name,
            error: Box::new(error),
        },
        None => error,
    }
}

fn check_head(model: &ModelDescription, head: Head) -> Result<(), ModelError> {
    ModelError::check_head(&model.folder, model.decoder.head, head)
}

fn refuse<T>(
    model: &ModelDescription,
    found: &'static str,
    needed: &'static str,
) -> Result<T, RolesError> {
    Err(RolesError::Model(ModelError::Kind {
        folder: model.folder.clone(),
        found,
        needed,
    }))
}

#[cfg(test)]
mod tests;
