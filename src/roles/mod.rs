//! Actor, critic, reference and reward model: what each owns, and how a batch is scored by them.
//!
//! With `share = "none"` actor and critic own all their weights; the reference is the frozen start of the actor. The critic starts
//! from the reward model or from the policy; an estimator without values has none, and then nothing of one is loaded.

mod critic;
pub mod experience;
mod scoring;

use std::path::Path;

use candle_core::Device;

use crate::data::{DataError, Tokenizer};
use crate::model::config::Head;
use crate::model::{Decoder, ModelError};
use crate::ops::param::Training;
use crate::reward::{RewardModel, Rewards};

pub use critic::CriticStart;
pub use experience::{Experience, ExperienceError, Sequence};
pub use scoring::{Packed, TokenScores, log_probs, values};

/// The four models of PPO.
pub struct Roles {
    /// The policy that is trained and that generates.
    pub actor: Decoder,
    /// The value function, trained; none where the estimator of advantages asks for no values.
    pub critic: Option<Decoder>,
    /// The frozen start of the actor.
    pub reference: Decoder,
    /// What scores: the frozen reward model, or a sum of other things.
    pub reward: Rewards,
}

/// Roles that cannot work together.
#[derive(Debug, thiserror::Error)]
pub enum RolesError {
    /// A model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] DataError),
    /// No reward model is among the rewards.
    #[error(
        "the critic starts from the reward model; there is none: add one to [[ppo.rewards]], type = \"model\" (weight = 0.0 if it \
         should not score)"
    )]
    NoCritic,
    /// Policy and scorer read different vocabularies.
    #[error(
        "{scorer} has a vocabulary of {found} tokens, the policy one of {expected}: they were made with different tokenizers, \
         so its scores would mean nothing; train it from the same model as the policy"
    )]
    Vocabulary {
        /// The scoring model's folder.
        scorer: String,
        /// Its vocabulary.
        found: usize,
        /// The policy's.
        expected: usize,
    },
    /// The vocabularies are of one size, but their tokens are not the same.
    #[error(
        "{scorer} was made with another tokenizer than the policy (token {id} is {found:?} there and {expected:?} in the policy), \
         so its scores would mean nothing; train it from the same model as the policy"
    )]
    Tokens {
        /// The scoring model's folder.
        scorer: String,
        /// The first id that differs.
        id: u32,
        /// Its token in the scoring model.
        found: String,
        /// Its token in the policy.
        expected: String,
    },
}

impl Roles {
    /// Loads actor and reference from `policy`, and the critic, if there is to be one, from where it starts.
    ///
    /// # Errors
    /// If a model or tokenizer cannot be read or vocabularies differ.
    pub fn load(
        policy: &Path,
        reward: Rewards,
        critic: Option<CriticStart>,
        device: &Device,
    ) -> Result<Self, RolesError> {
        let language = |training: Training| {
            Decoder::load(policy, Head::LanguageModel, 0, move |_| training, device)
        };
        let roles = Self {
            actor: language(Training::Trained)?,
            reference: language(Training::Frozen)?,
            critic: critic.map(|start| start.load(device)).transpose()?,
            reward,
        };
        for (folder, model) in roles.reward.models() {
            check_vocabulary(&roles.actor, model.decoder(), folder)?;
            check_tokens(policy, folder)?;
        }
        Ok(roles)
    }

    /// The roles that are trained, with what to call them.
    pub fn trained(&self) -> impl Iterator<Item = (&'static str, &Decoder)> {
        let critic = self.critic.iter().map(|critic| ("critic", critic));
        std::iter::once(("actor", &self.actor)).chain(critic)
    }
}

/// Loads a second reward model that only evaluations use; `actor` was loaded from the folder `policy`.
///
/// # Errors
/// As [`Roles::load`].
pub fn load_judge(
    actor: &Decoder,
    policy: &Path,
    folder: &Path,
    device: &Device,
) -> Result<RewardModel, RolesError> {
    let judge = RewardModel::load(folder, device)?;
    check_vocabulary(actor, judge.decoder(), folder)?;
    check_tokens(policy, folder)?;
    Ok(judge)
}

fn check_vocabulary(policy: &Decoder, scorer: &Decoder, folder: &Path) -> Result<(), RolesError> {
    let (expected, found) = (
        policy.decoder_config().vocab_size,
        scorer.decoder_config().vocab_size,
    );
    if expected == found {
        return Ok(());
    }
    Err(RolesError::Vocabulary {
        scorer: folder.display().to_string(),
        found,
        expected,
    })
}

/// Two tokenizers trained to one size pass [`check_vocabulary`], and yet no token need be the same. A folder without a
/// tokenizer, whose data is ids, cannot be checked.
fn check_tokens(policy: &Path, scorer: &Path) -> Result<(), RolesError> {
    let (Some(ours), Some(theirs)) = (tokenizer_in(policy)?, tokenizer_in(scorer)?) else {
        return Ok(());
    };
    match ours.first_difference(&theirs) {
        None => Ok(()),
        Some((id, expected, found)) => Err(RolesError::Tokens {
            scorer: scorer.display().to_string(),
            id,
            found,
            expected,
        }),
    }
}

fn tokenizer_in(folder: &Path) -> Result<Option<Tokenizer>, DataError> {
    let exists = folder.join("tokenizer.json").exists();
    exists.then(|| Tokenizer::load(folder)).transpose()
}
