//! Where scores come from: reward models that read token ids, and classifiers, rules, programs and endpoints that read text.
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

/// One completion, with all that a score may depend on.
#[derive(Clone, Debug)]
pub struct RewardInput<'a> {
    /// The prompt's text, as rendered.
    pub prompt: &'a str,
    /// The completion's text, without the stop text that ended it.
    pub text: &'a str,
    /// All tokens, given and generated.
    pub ids: &'a [u32],
    /// What generation computed of them below the layers that any role trains, where it kept that.
    pub states: Option<&'a States>,
    /// The generated tokens.
    pub response: Vec<u32>,
    /// The fields of the prompt's record beside `prompt`.
    pub fields: &'a Map<String, Value>,
}

/// Completions that are scored together.
#[derive(Clone, Copy, Debug)]
pub struct RewardBatch<'a> {
    /// The completions.
    pub completions: &'a [RewardInput<'a>],
    /// Most tokens of one packed pass of a reward model. CompletionScores do not depend on it.
    pub pass_tokens: usize,
}

/// Something that scores completions.
pub trait Scorer {
    /// One finite score a completion, in order; each a function of its completion alone.
    ///
    /// # Errors
    /// If a model fails, or something outside the process does not answer as it should.
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError>;

    /// Whether a prompt's record has what the scores need; if not, what it should have.
    ///
    /// # Errors
    /// What is missing, and what to do.
    fn check(&self, _fields: &Map<String, Value>) -> Result<(), String> {
        Ok(())
    }

    /// Called once all completions have been scored.
    ///
    /// # Errors
    /// If something outside the process said more than it was asked for.
    fn finish(&self) -> Result<(), RewardError> {
        Ok(())
    }
}
