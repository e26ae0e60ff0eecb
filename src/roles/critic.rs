//! Where the critic's first weights come from.

use std::path::Path;

use crate::model::config::Head;
use crate::model::{Decoder, ModelError};
use crate::ops::backend::Backend;
use crate::ops::param::Trainability;

/// What a critic starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CriticStart<'a> {
    /// A reward model, whose head already says how good a response is (Stiennon et al. 2020).
    RewardModel(&'a Path),
    /// A language model under a fresh scalar head.
    Policy {
        /// Its folder.
        folder: &'a Path,
        /// The head is a function of this.
        seed: u64,
    },
}

impl CriticStart<'_> {
    /// Loads the critic, all of its weights trained.
    ///
    /// # Errors
    /// If the model cannot be read or is of the other kind.
    pub fn load(self, backend: &Backend) -> Result<Decoder, ModelError> {
        let all = |_: &_| Trainability::Trained;
        match self {
            Self::RewardModel(folder) => Decoder::load_reward_model(folder, all, backend),
            Self::Policy { folder, seed } => Decoder::load(folder, Head::Score, seed, all, backend),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden/models")
            .join(name)
    }

    /// Each tensor's name and values.
    fn weights(model: &Decoder) -> Vec<(String, Vec<f32>)> {
        let read = |p: &std::sync::Arc<crate::ops::param::Param>| {
            (p.name().to_owned(), p.read(<[f32]>::to_vec).unwrap())
        };
        model.params().iter().map(read).collect()
    }

    #[test]
    fn a_critic_of_the_policy_has_its_weights_and_a_head_of_the_seed() {
        let folder = fixture("llama");
        let critic = |seed| {
            let start = CriticStart::Policy {
                folder: &folder,
                seed,
            };
            weights(&start.load(&Backend::CPU).unwrap())
        };
        let policy = Decoder::load(
            &folder,
            Head::LanguageModel,
            0,
            |_| Trainability::Frozen,
            &Backend::CPU,
        );
        let policy = weights(&policy.unwrap());
        let (first, again, other) = (critic(1), critic(1), critic(2));
        assert!(first == again);
        for ((name, values), (_, others)) in first.iter().zip(&other) {
            match policy.iter().find(|(known, _)| known == name) {
                Some((_, start)) => assert!(values == start && others == start, "{name}"),
                None => {
                    assert_eq!(name, "score.weight");
                    assert!(values != others && values.iter().any(|&v| v != 0.0));
                }
            }
        }
        assert!(first.iter().any(|(name, _)| name == "score.weight"));
    }

    #[test]
    fn a_language_model_is_no_reward_model() {
        let folder = fixture("llama");
        let refused = CriticStart::RewardModel(&folder).load(&Backend::CPU);
        let Err(error) = refused else {
            panic!("must be refused")
        };
        assert!(error.to_string().contains("reward model"), "{error}");
    }
}
