//! What can go wrong with a score.

use std::path::PathBuf;

use crate::model::ModelError;
use crate::model::score_position::NoPadding;
use crate::model::weights::WeightsError;

/// An error of loading what scores, or of scoring.
#[derive(Debug, thiserror::Error)]
pub enum RewardError {
    /// Which component failed.
    #[error("reward `{name}`")]
    Component {
        /// The component's name.
        name: String,
        /// What went wrong.
        source: Box<RewardError>,
    },
    /// A reward model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A reward model is to be read before padding that it does not have.
    #[error(transparent)]
    NoPadding(#[from] NoPadding),
    /// A computation failed.
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
    /// A classifier's weights cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A classifier's folder is not what it should be.
    #[error("{}: {message}", .folder.display())]
    Classifier {
        /// The folder.
        folder: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A pattern does not compile.
    #[error("the pattern \"{pattern}\" is no regular expression")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What the parser said.
        source: Box<regex::Error>,
    },
    /// A record lacks what a rule compares with.
    #[error("{0}")]
    Record(String),
    /// A program cannot be run, or does not answer as it should.
    #[error("the program `{command}` {message}")]
    Program {
        /// The program and its arguments.
        command: String,
        /// What it did, and what to do.
        message: String,
    },
    /// An endpoint does not answer as it should.
    #[error("{url} {message}")]
    Http {
        /// The endpoint.
        url: String,
        /// What it did, and what to do.
        message: String,
    },
    /// Another number of scores than of completions: a mistake of the component's own.
    #[error("made {found} scores for {expected} completions")]
    Count {
        /// CompletionScores.
        found: usize,
        /// Completions.
        expected: usize,
    },
}
