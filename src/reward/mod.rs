//! Scores of completions: by reward models, which read token ids, and by classifiers, rules,
//! programs and endpoints, which read text.
//!
//! Each kind implements [`Scorer`]; [`Rewards`] is their weighted sum.

mod classifier;
mod ensemble;
mod error;
mod exchange;
mod http;
mod lexicon;
mod model;
mod program;
mod rules;
#[cfg(test)]
mod sample;
mod sum;

use serde_json::{Map, Value};

use crate::model::boundary::States;

pub use classifier::Classifier;
pub use ensemble::Ensemble;
pub use error::RewardError;
pub use http::Http;
pub use lexicon::{Lexicon, LexiconError, Valence};
pub use model::{IdsAndStates, RewardModel, TrunkUse};
pub use program::Program;
pub use rules::{
    ExactRule, JsonRule, LengthRule, NumericRule, PatternRule, RepetitionRule, repeated,
};
pub use sum::{CompletionScores, Rewards};

/// One completion with everything that its score may depend on.
#[derive(Clone, Debug)]
pub struct RewardInput<'a> {
    /// The prompt's text, as rendered.
    pub prompt: &'a str,
    /// The completion's text, without the stop text that ended it.
    pub text: &'a str,
    /// Token ids of prompt and completion.
    pub ids: &'a [u32],
    /// Hidden states that generation recorded below the layers that any role trains, where it
    /// recorded them.
    pub states: Option<&'a States>,
    /// Token ids of the completion.
    pub response: Vec<u32>,
    /// Fields of the prompt's record, without `prompt`.
    pub fields: &'a Map<String, Value>,
}

/// Completions that are scored together.
#[derive(Clone, Copy, Debug)]
pub struct RewardBatch<'a> {
    /// The completions.
    pub completions: &'a [RewardInput<'a>],
    /// Most tokens of one packed pass of a reward model. Scores do not depend on it.
    pub pass_tokens: usize,
}

/// A component that scores completions.
pub trait Scorer {
    /// One finite score for each completion, in order. The score of a completion depends on no
    /// other completion.
    ///
    /// # Errors
    /// If a model fails, or a program or endpoint does not answer as it should.
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError>;

    /// Checks that a prompt's record has the fields that the scores need.
    ///
    /// # Errors
    /// The missing field, and what to do.
    fn check(&self, _fields: &Map<String, Value>) -> Result<(), String> {
        Ok(())
    }

    /// Called once all completions have been scored.
    ///
    /// # Errors
    /// If a program wrote more than was requested.
    fn finish(&self) -> Result<(), RewardError> {
        Ok(())
    }
}
