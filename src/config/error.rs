//! Errors of a configuration.
//!
//! All problems are reported at once, each with its key, its value, the origin of the value, and
//! the remedy.

use std::fmt;
use std::path::PathBuf;

/// Origin of a key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    /// A line (counted from 1) of the configuration file.
    Line {
        /// The file as it was given on the command line.
        file: PathBuf,
        /// Line number, counted from 1.
        line: usize,
    },
    /// An override, `--set KEY=VALUE`.
    Override(String),
    /// A flag of the command line, such as `--top-p`.
    Flag,
    /// The built-in default.
    Default,
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueOrigin::Line { file, line } => write!(f, "{}:{line}", file.display()),
            ValueOrigin::Override(text) => write!(f, "--set {text}"),
            ValueOrigin::Flag => f.write_str("command line"),
            ValueOrigin::Default => f.write_str("the default"),
        }
    }
}

/// One problem of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key in full, such as `ppo.cliprange`.
    pub key: String,
    /// The value that was found, as TOML; none if the key is missing or unknown.
    pub value: Option<String>,
    /// Place of the value or, for a missing key, of its table.
    pub place: ValueOrigin,
    /// Words for the fault and its remedy.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, " ({}): {}", self.place, self.message)
    }
}

/// The problems of one configuration, in the order in which they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0.as_slice() {
            return write!(f, "{only}");
        }
        write!(f, "{} problems in the configuration:", self.0.len())?;
        self.0
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// An error of reading, checking or writing a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {} (looked in {})", file.display(), looked_in.display())]
    Read {
        /// The file as it was given.
        file: PathBuf,
        /// The folder that relative paths start from.
        looked_in: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}:{column}: not valid TOML: {message}", file.display())]
    Syntax {
        /// The file as it was given.
        file: PathBuf,
        /// Line number, counted from 1.
        line: usize,
        /// Column in characters, counted from 1.
        column: usize,
        /// Message of the parser.
        message: String,
    },
    /// An override is not valid.
    #[error("--set {text}: {message}")]
    Override {
        /// The override as it was given.
        text: String,
        /// Words for the fault and its remedy.
        message: String,
    },
    /// The file is TOML, but its keys or values are wrong.
    #[error("{0}")]
    Invalid(Problems),
    /// The resolved configuration could not be written as TOML.
    #[error("cannot write the configuration as TOML: {0}")]
    Serialize(String),
}
