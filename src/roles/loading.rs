//! Loads the roles by their [`RoleLayout`].

use std::path::Path;

use crate::random::Independent;

use super::layout::{RoleLayout, RoleModel, RoleWeights, SharedTensors};
use super::{Roles, RolesError};
use crate::config::RewardComponent;
use crate::model::config::Head;
use crate::model::{Decoder, ModelError};
use crate::ops::backend::Backend;
use crate::ops::param::Trainability;
use crate::ops::work::{self, DeviceWork};
use crate::reward::{RewardModel, Rewards};

impl Roles {
    /// Loads the roles of a layout and the scorers of `rewards`. New adapters and heads are
    /// functions of `seed`.
    ///
    /// # Errors
    /// If a model cannot be read or a scorer cannot be started.
    pub fn load(
        layout: RoleLayout,
        rewards: &[RewardComponent],
        seed: u64,
        backend: &Backend,
    ) -> Result<Self, RolesError> {
        let loading = |role| work::begin(DeviceWork::Loading(role));
        let loader = Loader::new(&layout, seed, backend)?;
        let _work = loading("reward model");
        let reward = Rewards::load(rewards, &|folder| loader.reward_model(folder))?;
        let _work = loading("actor");
        let actor = loader.decoder(&layout.actor, seed)?;
        let _work = loading("critic");
        let critic = layout.critic.as_ref();
        let critic = critic.map(|role| loader.decoder(role, Independent::Critic.seed(seed)));
        let critic = critic.transpose()?;
        let _work = loading("judge");
        let judge = layout.judge.as_ref().map(|role| loader.scorer(role));
        let judge = judge.transpose()?;
        let _work = loading("reference");
        let reference = layout.reference.as_ref();
        let reference = reference.map(|role| loader.reference(role)).transpose()?;
        Ok(Self {
            layout,
            actor,
            critic,
            reference,
            reward,
            judge,
        })
    }
}

/// Loads the roles of a layout on the tensors that they share.
struct Loader<'a> {
    layout: &'a RoleLayout,
    seed: u64,
    backend: &'a Backend,
    /// The frozen model that holds the shared tensors; `None` if nothing is shared.
    base: Option<Decoder>,
}

impl<'a> Loader<'a> {
    fn new(layout: &'a RoleLayout, seed: u64, backend: &'a Backend) -> Result<Self, ModelError> {
        let base = match layout.shared {
            SharedTensors::None => None,
            SharedTensors::Trunk { .. } | SharedTensors::Base => {
                let _work = work::begin(DeviceWork::Loading("weights that the roles share"));
                let (head, frozen) = (Head::LanguageModel, |_: &_| Trainability::Frozen);
                Some(Decoder::load(layout.base(), head, 0, frozen, backend)?)
            }
        };
        Ok(Self {
            layout,
            seed,
            backend,
            base,
        })
    }

    /// The model of a role. A new head and new adapters are drawn from `seed`.
    fn decoder(&self, role: &RoleModel, seed: u64) -> Result<Decoder, ModelError> {
        let (folder, training) = (&role.model.folder, role.training);
        let head = role.model.decoder.head;
        match (&role.weights, &self.base) {
            (RoleWeights::Branch { trunk_layers }, Some(base)) => {
                Decoder::load_on_trunk(base, *trunk_layers, folder, head, seed, training)
            }
            (RoleWeights::Adapters(_), Some(base)) => {
                Decoder::load_adapter(base, folder, head, seed, training)
            }
            (RoleWeights::NewAdapters(table, _), Some(base)) => {
                Decoder::adapt(base, table, head, seed, training)
            }
            _ => Decoder::load(folder, head, seed, |_| training, self.backend),
        }
    }

    /// The reference. If it has no own adapters, it is the model with the shared tensors.
    fn reference(mut self, role: &RoleModel) -> Result<Decoder, ModelError> {
        match (&role.weights, self.base.take()) {
            (RoleWeights::Branch { .. } | RoleWeights::Base, Some(base)) => Ok(base),
            (_, base) => Self { base, ..self }.decoder(role, self.seed),
        }
    }

    /// A frozen reward model or the judge.
    fn scorer(&self, role: &RoleModel) -> Result<RewardModel, ModelError> {
        let decoder = self.decoder(role, self.seed)?;
        Ok(match self.layout.starts_at_boundary(role) {
            true => RewardModel::sharing(decoder),
            false => RewardModel::new(decoder),
        })
    }

    /// The reward model in `folder`.
    fn reward_model(&self, folder: &Path) -> Result<RewardModel, ModelError> {
        let mut roles = self.layout.rewards.iter();
        match roles.find(|role| role.model.folder == folder) {
            Some(role) => self.scorer(role),
            None => RewardModel::load(folder, self.backend),
        }
    }
}

#[cfg(test)]
mod tests;
