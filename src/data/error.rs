//! Errors of data files, tokenizers and templates. Each names the file, the line, the field, the
//! contents and the remedy.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Result of the functions in [`crate::data`].
pub type Result<T> = std::result::Result<T, DataError>;

/// The origin of a record; printed as `file:line`, or as `file: record 3` if its line is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSource {
    /// The file as the user named it. Shared by all records of the file.
    pub file: Arc<Path>,
    /// The record's position in the file.
    pub place: RecordPlace,
}

/// A record's position in its file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordPlace {
    /// The line on which the record starts.
    Line(usize),
    /// Index of the record in a JSON array.
    Record(usize),
    /// Index of the row in a table.
    Row(usize),
}

impl fmt::Display for RecordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match self.place {
            RecordPlace::Line(line) => write!(f, ":{line}"),
            RecordPlace::Record(record) => write!(f, ": record {record}"),
            RecordPlace::Row(row) => write!(f, ": row {row}"),
        }
    }
}

/// An error in data, tokenizer or template.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder could not be read or written.
    #[error("{}: {source}{hint}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
        /// The remedy; empty, or starting with `; `.
        hint: &'static str,
    },
    /// A file whose extension is unknown.
    #[error(
        "{}: unknown kind of data file; expected .jsonl, .ndjson, .json, .csv, .tsv, .parquet or \
         .txt, and .gz or .zst behind it if it is compressed",
        path.display()
    )]
    UnknownKind {
        /// The file.
        path: PathBuf,
    },
    /// A line that is not JSON.
    #[error("{file}:{line}:{column}: malformed JSON: {message}", file = file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column in bytes, counted from 1.
        column: usize,
        /// Message of the parser.
        message: String,
    },
    /// Text that is not UTF-8.
    #[error(
        "{file}:{line}: invalid UTF-8 at byte {byte} of the line; convert the file to UTF-8",
        file = file.display()
    )]
    Utf8 {
        /// The file.
        file: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Byte in the line, counted from 1.
        byte: usize,
    },
    /// A Parquet file that cannot be read.
    #[error("{}: not a readable Parquet file: {message}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Message of the reader.
        message: String,
    },
    /// A file that is not of its kind, or that lacks a column of the configuration.
    #[error("{}: {message}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Words for the fault and its remedy.
        message: String,
    },
    /// A file without a single record.
    #[error("{}: the dataset is empty; expected at least one record", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A field that the task needs and the record does not have.
    #[error("{at}: missing field `{field}` ({expected}){hint}; the record has {present}")]
    MissingField {
        /// The record.
        at: RecordSource,
        /// The field that is needed.
        field: String,
        /// The expected contents of the field.
        expected: &'static str,
        /// A field to rename, or another remedy; empty, or starting with `; `.
        hint: String,
        /// The names of the record's fields.
        present: String,
    },
    /// A field of the wrong type.
    #[error("{at}: field `{field}` is {found}; expected {expected}")]
    FieldType {
        /// The record.
        at: RecordSource,
        /// The field, with its path inside (`messages[2].role`).
        field: String,
        /// The type found.
        found: &'static str,
        /// The type expected.
        expected: &'static str,
    },
    /// A record whose fields contradict each other or contain nothing to learn from.
    #[error("{at}: {message}")]
    Record {
        /// The record.
        at: RecordSource,
        /// Words for the fault and its remedy.
        message: String,
    },
    /// A sequence that is too long.
    #[error("{at}: {what} has {found} tokens but {limit}; {mend}")]
    TooLong {
        /// The record.
        at: RecordSource,
        /// The part that is too long, in words.
        what: &'static str,
        /// Number of tokens found.
        found: usize,
        /// The limit in words.
        limit: String,
        /// The remedy.
        mend: String,
    },
    /// A tokenizer that cannot be loaded, trained or written.
    #[error("tokenizer {place}: {message}")]
    Tokenizer {
        /// Folder or file, or `(trained)`.
        place: String,
        /// Words for the fault and its remedy.
        message: String,
    },
    /// A chat template that does not compile or render.
    #[error("chat template: {0}")]
    Template(String),
    /// A chat template that exceeds a bound. It fails for all records, so that it counts as an
    /// error of the template, not of a record.
    #[error("chat template: {0}")]
    TemplateBound(String),
    /// Sizes or weights that are not valid.
    #[error("{0}")]
    Invalid(String),
}

impl DataError {
    /// The error with the template's file in front; `place` is empty or ends in `: `.
    pub fn in_template(self, place: &str) -> Self {
        match self {
            DataError::Template(message) => DataError::Template(format!("{place}{message}")),
            DataError::TemplateBound(message) => {
                DataError::TemplateBound(format!("{place}{message}"))
            }
            other => other,
        }
    }

    /// An I/O error that names the path.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        let hint = match source.kind() {
            std::io::ErrorKind::NotFound => {
                "; check the path (it is relative to the current folder)"
            }
            std::io::ErrorKind::IsADirectory => "; expected a file, not a folder",
            _ => "",
        };
        DataError::Io {
            path: path.to_owned(),
            source,
            hint,
        }
    }
}
