//! Errors of this module's functions.

use thiserror::Error;

/// Result of this module's functions.
pub type Result<T> = std::result::Result<T, RlhfError>;

/// An argument that does not fit the others, or a failure of the tensor library.
#[derive(Debug, Error)]
pub enum RlhfError {
    /// A slice or tensor whose length differs from what the other arguments imply.
    #[error(
        "{what} has {found} elements but {expected} are needed: every per-token and per-sequence \
         input must describe the same batch"
    )]
    Length {
        /// Name of the argument.
        what: &'static str,
        /// Number of elements of the argument.
        found: usize,
        /// The number the other arguments imply.
        expected: usize,
    },
    /// Row offsets that do not rise from zero.
    #[error(
        "row offsets are not valid at index {index}: {problem}; they must start at 0 and rise, as \
         every sequence has at least one token"
    )]
    Offsets {
        /// Index of the first offset that is wrong.
        index: usize,
        /// The offset or offsets found there.
        problem: String,
    },
    /// Scores that cannot be cut into groups of samples of one prompt.
    #[error(
        "{sequences} sequences cannot be cut into groups of {group_size}: sample every prompt the \
         same number of times, at least 2"
    )]
    Groups {
        /// Number of sequences in the batch.
        sequences: usize,
        /// Samples that each prompt was said to have.
        group_size: usize,
    },
    /// A number of baselines that differs from the number of prompts.
    #[error(
        "{sequences} sequences, {samples} of each prompt, need one baseline a prompt; found \
         {baselines}"
    )]
    Baselines {
        /// Number of sequences in the batch.
        sequences: usize,
        /// Number of baselines.
        baselines: usize,
        /// Samples that each prompt was said to have.
        samples: usize,
    },
    /// A number outside its range.
    #[error("{what} is {found}, but must be {requirement}")]
    Range {
        /// Name of the argument.
        what: &'static str,
        /// Value of the argument.
        found: f64,
        /// The allowed range, in words that follow "must be".
        requirement: &'static str,
    },
    /// A failure inside candle.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

/// Fails unless `found` equals `expected`.
pub(super) fn check_length(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(RlhfError::Length {
        what,
        found,
        expected,
    })
}

/// Fails unless `found` is a finite number above zero.
pub(super) fn check_positive(what: &'static str, found: f64) -> Result<()> {
    if found.is_finite() && found > 0.0 {
        return Ok(());
    }
    Err(RlhfError::Range {
        what,
        found,
        requirement: "finite and above 0",
    })
}

/// Fails unless `found` is a finite number, zero or above.
pub(super) fn check_not_negative(what: &'static str, found: f64) -> Result<()> {
    if found.is_finite() && found >= 0.0 {
        return Ok(());
    }
    Err(RlhfError::Range {
        what,
        found,
        requirement: "finite and 0 or above",
    })
}
