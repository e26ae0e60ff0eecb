//! What the roles hold in common: the ground on which each of them is loaded.
//!
//! - Nothing: each owns its weights.
//! - A trunk: the embedding and the lowest layers of the policy, frozen. Above it each role has a branch of its own.
//! - A base under adapters (Hu et al. 2021): all of the policy, frozen. Each role but the reference adds low-rank matrices, and its
//!   head; a policy that has adapters itself brings its base, and the reference keeps a frozen copy of them.

mod scorers;

pub use scorers::check_has_adapter;

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::critic::CriticStart;
use crate::model::config::Head;
use crate::model::hf_config::adapter::AdapterConfig;
use crate::model::lora::{Lora, RequestedLora};
use crate::model::{Decoder, ModelError};
use crate::ops::backend::Backend;
use crate::ops::param::Trainability;
use crate::reward::{RewardModel, TrunkUse};

type Result<T> = std::result::Result<T, ModelError>;

/// What the roles hold in common.
#[derive(Clone, Debug, PartialEq)]
pub enum Sharing {
    /// Nothing.
    None,
    /// The lowest layers.
    Trunk {
        /// How many.
        layers: usize,
    },
    /// All but adapters and heads. The adapters of a policy that has some are trained further, and must have the settings that are
    /// asked for. Otherwise those that are asked for are drawn, or the usual ones.
    Adapter(Option<RequestedLora>),
}

/// The policy as it starts, on which roles are loaded.
pub struct Ground<'a> {
    policy: &'a Path,
    sharing: &'a Sharing,
    seed: u64,
    backend: &'a Backend,
    /// Frozen; with adapters the model that all of them stand on. Read when it is first asked for: where nothing is shared it is the
    /// reference, which not every run needs.
    base: OnceCell<Decoder>,
    /// The folder of that model.
    base_folder: PathBuf,
    /// The folders of those that were found to stand on it.
    known: RefCell<BTreeSet<PathBuf>>,
}

impl<'a> Ground<'a> {
    /// The policy's frozen weights, or its base's where adapters are what is trained and it has them already. `seed` draws fresh
    /// adapters and heads.
    ///
    /// # Errors
    /// If they cannot be read, or a trunk has more layers than the policy.
    pub fn load(
        policy: &'a Path,
        sharing: &'a Sharing,
        seed: u64,
        backend: &'a Backend,
    ) -> Result<Self> {
        let base_folder = match (sharing, AdapterConfig::find(policy)?) {
            (Sharing::Adapter(_), Some(adapter)) => adapter.base_folder(policy)?,
            _ => policy.to_owned(),
        };
        let ground = Self {
            policy,
            sharing,
            seed,
            backend,
            base: OnceCell::new(),
            base_folder,
            known: RefCell::default(),
        };
        if let Sharing::Trunk { layers } = sharing {
            ground.base()?.check_depth(*layers)?;
        }
        Ok(ground)
    }

    fn base(&self) -> Result<&Decoder> {
        if let Some(base) = self.base.get() {
            return Ok(base);
        }
        let base = read_frozen(&self.base_folder, self.backend)?;
        Ok(self.base.get_or_init(|| base))
    }

    /// The folder of the model that adapters stand on.
    pub fn base_folder(&self) -> &Path {
        &self.base_folder
    }

    /// The policy that is trained.
    ///
    /// # Errors
    /// If it cannot be read, or the ground does not fit it.
    pub fn actor(&self) -> Result<Decoder> {
        let (head, trained) = (Head::LanguageModel, Trainability::Trained);
        match self.sharing {
            Sharing::None => Decoder::load(self.policy, head, 0, |_| trained, self.backend),
            Sharing::Trunk { layers } => {
                Decoder::load_on_trunk(self.base()?, *layers, self.policy, head, 0, trained)
            }
            Sharing::Adapter(asked) if self.has_adapters() => {
                let actor = self.adapters_of(self.policy, trained)?;
                if let Some(asked) = asked {
                    actor.check_adapters("ppo.lora", asked, self.policy)?;
                }
                Ok(actor)
            }
            Sharing::Adapter(asked) => self.adapt(asked.as_ref(), head, self.seed),
        }
    }

    /// The value function.
    ///
    /// # Errors
    /// As [`Self::actor`], and if it starts from a reward model that was trained on other ground.
    pub fn critic(&self, start: CriticStart) -> Result<Decoder> {
        let (head, trained) = (Head::Score, Trainability::Trained);
        match (self.sharing, start) {
            (Sharing::None, start) => start.load(self.backend),
            (_, CriticStart::RewardModel(folder)) => self.scorer(folder, trained),
            (Sharing::Trunk { layers }, CriticStart::Policy { folder, seed }) => {
                Decoder::load_on_trunk(self.base()?, *layers, folder, head, seed, trained)
            }
            (Sharing::Adapter(_), CriticStart::Policy { folder, seed }) if self.has_adapters() => {
                Decoder::load_adapter(self.base()?, folder, head, seed, trained)
            }
            (Sharing::Adapter(asked), CriticStart::Policy { seed, .. }) => {
                self.adapt(asked.as_ref(), head, seed)
            }
        }
    }

    /// The frozen start of the actor.
    ///
    /// # Errors
    /// As [`Self::actor`].
    pub fn reference(self) -> Result<Decoder> {
        match self.has_adapters() {
            true => self.adapters_of(self.policy, Trainability::Frozen),
            false => match self.base.into_inner() {
                Some(base) => Ok(base),
                None => read_frozen(&self.base_folder, self.backend),
            },
        }
    }

    /// Whether the policy is a base with adapters on it.
    fn has_adapters(&self) -> bool {
        self.base_folder != self.policy
    }

    fn adapt(&self, asked: Option<&RequestedLora>, head: Head, seed: u64) -> Result<Decoder> {
        let lora = asked.map(RequestedLora::fresh).unwrap_or_default();
        Decoder::adapt(self.base()?, &lora, head, seed, Trainability::Trained)
    }

    fn adapters_of(&self, folder: &Path, training: Trainability) -> Result<Decoder> {
        Decoder::load_adapter(
            self.base()?,
            folder,
            Head::LanguageModel,
            self.seed,
            training,
        )
    }
}

/// A language model that nobody trains.
fn read_frozen(folder: &Path, backend: &Backend) -> Result<Decoder> {
    let frozen = |_: &_| Trainability::Frozen;
    Decoder::load(folder, Head::LanguageModel, 0, frozen, backend)
}

/// The layer below which all roles are one, if there is one above the lowest: generation keeps the states at its input.
pub fn boundary<'d>(
    sharing: &Sharing,
    trained: impl Iterator<Item = &'d Decoder>,
    scorers: impl Iterator<Item = &'d RewardModel>,
) -> Option<usize> {
    let layer = match sharing {
        Sharing::None => 0,
        Sharing::Trunk { layers } => *layers,
        Sharing::Adapter(_) => {
            let scorers = scorers.filter(|model| model.trunk_use() == TrunkUse::Shared);
            let all = trained.chain(scorers.map(RewardModel::decoder));
            all.map(lowest_adapter).min().unwrap_or(0)
        }
    };
    (layer > 0).then_some(layer)
}

fn lowest_adapter(model: &Decoder) -> usize {
    model.lora().and_then(Lora::lowest_layer).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::{DecoderConfig, Family, Geometry};
    use crate::model::hf_config::HfConfig;
    use crate::model::lora::{Layers, LoraConfig};

    fn base() -> Decoder {
        let sizes = Geometry {
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: None,
            vocab_size: 10,
            max_position_embeddings: 16,
        };
        let config = DecoderConfig::from_scratch(Family::Llama, &sizes).unwrap();
        let frozen = |_: &_| Trainability::Frozen;
        Decoder::fresh(HfConfig::new(config), 0, frozen, &Backend::CPU).unwrap()
    }

    fn adapted(base: &Decoder, layers: Layers, head: Head) -> Decoder {
        let config = LoraConfig {
            layers_to_transform: layers,
            ..LoraConfig::default()
        };
        Decoder::adapt(base, &config, head, 0, Trainability::Trained).unwrap()
    }

    #[test]
    fn the_boundary_lies_below_all_that_is_trained_or_adapted() {
        let base = base();
        let [actor, critic] = [Layers::Top(1), Layers::Top(2)]
            .map(|layers| adapted(&base, layers, Head::LanguageModel));
        let lowest = adapted(&base, Layers::All, Head::Score);
        let middle = adapted(&base, Layers::Top(2), Head::Score);
        let adapter = Sharing::Adapter(None);
        let found = |trained: &[&Decoder], scorers: &[&RewardModel]| {
            boundary(&adapter, trained.iter().copied(), scorers.iter().copied())
        };
        assert_eq!(found(&[&actor], &[]), Some(2));
        assert_eq!(found(&[&actor, &critic], &[]), Some(1));
        assert_eq!(found(&[&actor], &[&RewardModel::sharing(middle)]), Some(1));
        let [lowest, alone] = [
            RewardModel::sharing(lowest),
            RewardModel::new(adapted(&base, Layers::All, Head::Score)),
        ];
        assert_eq!(found(&[&actor], &[&lowest]), None);
        assert_eq!(found(&[&actor], &[&alone]), Some(2));
        let of = |sharing| boundary(&sharing, [&actor].into_iter(), [].into_iter());
        assert_eq!(of(Sharing::None), None);
        assert_eq!(of(Sharing::Trunk { layers: 3 }), Some(3));
    }
}
