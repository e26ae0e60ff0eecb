//! Actor, critic, reference and reward model: what each owns, and how a batch is scored by them.
//!
//! What they hold in common is [`Sharing`]'s: nothing, a trunk of frozen layers, or all but adapters. The reference is the frozen start
//! of the actor, and is loaded where anything reads it. The critic starts from the reward model or from the policy; an estimator without
//! values has none, and then nothing of one is loaded.

mod critic;
pub mod experience;
mod passes;
mod sharing;

use std::path::{Path, PathBuf};

use crate::config::RewardComponent;
use crate::data::{DataError, Tokenizer};
use crate::model::{Decoder, ModelError};
use crate::reward::{RewardError, RewardModel, Rewards};

pub use critic::CriticStart;
pub use experience::{Experience, ExperienceError, Sequence};
pub use passes::{
    PackedSequences, PolicyLogProbs, log_probs, policy_log_probs, values, whole_log_probs,
};
pub use sharing::{Ground, Sharing, check_has_adapter};

use sharing::boundary;

/// The four models of PPO.
pub struct Roles {
    /// The policy that is trained and that generates.
    pub actor: Decoder,
    /// The value function, trained; none where the estimator of advantages asks for no values.
    pub critic: Option<Decoder>,
    /// The frozen start of the actor; none where nothing reads it.
    pub reference: Option<Decoder>,
    /// What scores: the frozen reward model, or a sum of other things.
    pub reward: Rewards,
    /// A second reward model, which only evaluations use, if there is one.
    pub judge: Option<RewardModel>,
    /// The folder of the frozen model that adapters stand on.
    pub base: PathBuf,
    /// The layer below which all of them are one and frozen, if they share layers.
    pub boundary: Option<usize>,
}

/// Whether the reference is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// Something reads it.
    Read,
    /// Read by nobody, and not loaded.
    Unread,
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
    /// What scores cannot be read or started.
    #[error(transparent)]
    Reward(#[from] RewardError),
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
    /// Loads them on their common ground: the critic, if there is to be one, from where it starts; the reference, if it is read; what
    /// scores as `rewards` says; the judge from its folder, if it has one.
    ///
    /// # Errors
    /// If a model or tokenizer cannot be read, vocabularies differ, or a model was trained on other ground.
    pub fn load(
        ground: Ground,
        sharing: &Sharing,
        policy: &Path,
        critic: Option<CriticStart>,
        reference: Reference,
        rewards: &[RewardComponent],
        judge: Option<&Path>,
    ) -> Result<Self, RolesError> {
        let reward = Rewards::load(rewards, &|folder| ground.reward_model(folder))?;
        let actor = ground.actor()?;
        let critic = critic.map(|start| ground.critic(start)).transpose()?;
        let trained = critic.iter().chain([&actor]);
        let models = reward.models().map(|(_, model)| model);
        let boundary = boundary(sharing, trained, models);
        let loaded = judge.map(|folder| ground.judge(folder, boundary));
        let roles = Self {
            judge: loaded.transpose()?,
            boundary,
            base: ground.base_folder().to_owned(),
            actor,
            critic,
            reference: match reference {
                Reference::Read => Some(ground.reference()?),
                Reference::Unread => None,
            },
            reward,
        };
        for (folder, model) in roles.reward.models().chain(judge.zip(roles.judge.as_ref())) {
            let rows = |decoder: &Decoder| decoder.decoder_config().vocab_size;
            check_vocabulary(rows(&roles.actor), rows(model.decoder()), folder)?;
            check_tokens(policy, (folder, folder))?;
        }
        Ok(roles)
    }
}

/// Checks that a scorer has as many tokens as the policy.
///
/// # Errors
/// If they differ.
pub fn check_vocabulary(expected: usize, found: usize, scorer: &Path) -> Result<(), RolesError> {
    if expected == found {
        return Ok(());
    }
    Err(RolesError::Vocabulary {
        scorer: scorer.display().to_string(),
        found,
        expected,
    })
}

/// Checks that ids mean the same tokens in the policy and in a scorer, given with the folder of its tokenizer. Two tokenizers trained
/// to one size pass [`check_vocabulary`], and yet no token need be the same. A folder without a tokenizer, whose data is ids, cannot be
/// checked.
///
/// # Errors
/// If a token differs, or a tokenizer cannot be read.
pub fn check_tokens(policy: &Path, scorer: (&Path, &Path)) -> Result<(), RolesError> {
    let (scorer, tokenizer) = scorer;
    let (Some(ours), Some(theirs)) = (tokenizer_in(policy)?, tokenizer_in(tokenizer)?) else {
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
