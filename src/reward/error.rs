//! Errors of reward components.

use std::path::PathBuf;

use crate::model::ModelError;
use crate::model::score_position::NoPadding;
use crate::model::weights::WeightsError;

/// An error of loading a reward component, or of scoring.
#[derive(Debug, thiserror::Error)]
pub enum RewardError {
    /// The component that failed.
    #[error("reward `{name}`")]
    Component {
        /// The component's name.
        name: String,
        /// The component's error.
        source: Box<RewardError>,
    },
    /// A reward model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The score is to be read before padding, but the model has no padding token.
    #[error(transparent)]
    NoPadding(#[from] NoPadding),
    /// A computation failed.
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
    /// A classifier's weights cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A classifier's folder lacks a file or holds something else.
    #[error("{}: {message}", .folder.display())]
    Classifier {
        /// The folder.
        folder: PathBuf,
        /// The problem, and what to do.
        message: String,
    },
    /// A pattern does not compile.
    #[error("the pattern \"{pattern}\" is no regular expression")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The parser's error.
        source: Box<regex::Error>,
    },
    /// A record lacks the field that a rule compares with.
    #[error("{0}")]
    Record(String),
    /// A program cannot be run, or does not answer as it should.
    #[error("the program `{command}` {message}")]
    Program {
        /// The program and its arguments.
        command: String,
        /// The problem, in words that follow the name, and what to do.
        message: String,
    },
    /// An endpoint does not answer as it should.
    #[error("{url} {message}")]
    Http {
        /// The endpoint.
        url: String,
        /// The problem, in words that follow the name, and what to do.
        message: String,
    },
    /// A component returned another number of scores than of completions.
    #[error("made {found} scores for {expected} completions")]
    Count {
        /// Number of scores.
        found: usize,
        /// Number of completions.
        expected: usize,
    },
}
