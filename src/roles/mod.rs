//! Actor, critic, reference and reward model: the tensors of each, and their forward passes over a
//! batch.
//!
//! A [`RoleLayout`] has the tensors that each role owns, shares and trains; [`Roles::load`] loads
//! the roles by it.

mod description;
pub mod experience;
mod layout;
mod loading;
mod passes;
mod vocabulary;

use crate::config::Stage;
use crate::data::DataError;
use crate::model::{Decoder, ModelError};
use crate::reward::{RewardError, RewardModel, Rewards};

pub use description::{AdapterDescription, ModelDescription, Origin, PpoModels, is_model};
pub use experience::{Experience, ExperienceError, Sequence};
pub use layout::{
    OwnedTensor, PromptUse, RoleLayout, RoleModel, RoleTensors, RoleWeights, SharedTensors,
};
pub use passes::{
    PackedSequences, PolicyLogProbs, log_probs, policy_log_probs, values, whole_log_probs,
};

/// The models of PPO.
pub struct Roles {
    /// The tensors that each role owns and shares.
    pub layout: RoleLayout,
    /// The policy that is trained and that generates.
    pub actor: Decoder,
    /// The value function, trained; `None` if the advantage estimator has no values.
    pub critic: Option<Decoder>,
    /// The frozen start of the actor; `None` if nothing reads it.
    pub reference: Option<Decoder>,
    /// The scorers: frozen reward models, rules, programs and endpoints.
    pub reward: Rewards,
    /// A reward model that only evaluations use.
    pub judge: Option<RewardModel>,
}

/// An error of roles that do not fit together or cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RolesError {
    /// A model cannot be read, or is of the wrong kind.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] DataError),
    /// A scorer cannot be read or started.
    #[error(transparent)]
    Reward(#[from] RewardError),
    /// A reward model does not fit the policy.
    #[error("reward `{name}`: {error}")]
    RewardModel {
        /// Name of the reward component.
        name: String,
        /// The reward model's error.
        error: Box<RolesError>,
    },
    /// The judge does not fit the policy.
    #[error("ppo.judge_model: {0}")]
    Judge(Box<RolesError>),
    /// A stage of the run would train layers of the trunk that a scorer and the policy share.
    #[error(
        "[{stage}] would train layers of the trunk that {scorer} and the policy {policy} share; \
         {mend}"
    )]
    TrainedTrunk {
        /// The stage.
        stage: Stage,
        /// The model folder of the scorer.
        scorer: String,
        /// The model folder of the policy.
        policy: String,
        /// The changes that keep the trunk.
        mend: String,
    },
    /// The weights that a scorer should share with the policy come from another model.
    #[error(
        "{scorer} cannot share weights with the policy: it is trained on {found}, and the roles \
         share {expected}; {mend}"
    )]
    DifferentModels {
        /// The model folder of the scorer.
        scorer: String,
        /// The model whose weights the scorer leaves unchanged.
        found: String,
        /// The model whose weights the roles share.
        expected: String,
        /// The changes that give both the same weights.
        mend: String,
    },
    /// Policy and scorer have vocabularies of different sizes.
    #[error(
        "{scorer} has a vocabulary of {found} tokens, the policy one of {expected}: they were \
         made with different tokenizers, so its scores would mean nothing; train it from the same \
         model as the policy"
    )]
    Vocabulary {
        /// The model folder of the scorer.
        scorer: String,
        /// The number of tokens of the scorer.
        found: usize,
        /// The number of tokens of the policy.
        expected: usize,
    },
    /// The vocabularies have one size but different tokens.
    #[error(
        "{scorer} was made with another tokenizer than the policy (token {id} is {found:?} there \
         and {expected:?} in the policy), so its scores would mean nothing; train it from the \
         same model as the policy"
    )]
    Tokens {
        /// The model folder of the scorer.
        scorer: String,
        /// The first id whose token differs.
        id: u32,
        /// The token of the scorer.
        found: String,
        /// The token of the policy.
        expected: String,
    },
}
