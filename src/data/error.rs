//! Errors of data files, tokenizers and templates. Each names the file, the line, the field, what
//! was found and what to do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Result of anything in [`crate::data`].
pub type Result<T> = std::result::Result<T, DataError>;

/// The origin of a record; prints as `file:line`, or as `file: record 3` where its line is not
/// known.
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
    /// The line that holds it, or on which it starts.
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
        /// The system's error.
        source: std::io::Error,
        /// The remedy; empty, or starting with `; `.
        hint: &'static str,
    },
    /// A file whose name does not say what it holds.
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
        /// The parser's words.
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
        /// The reader's words.
        message: String,
    },
    /// A file that cannot be read as what it is, or that lacks what the configuration names.
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
    /// A record whose fields contradict one another or hold nothing to learn from.
    #[error("{at}: {message}")]
    Record {
        /// The record.
        at: RecordSource,
        /// Words for the fault and its remedy.
        message: String,
    },
    /// More tokens than a sequence may have.
    #[error("{at}: {what} has {found} tokens but {limit}; {mend}")]
    TooLong {
        /// The record.
        at: RecordSource,
        /// Which part is too long.
        what: &'static str,
        /// Tokens found.
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
    /// A chat template that exceeds a bound: no record goes through it, so that it is no fault of
    /// one.
    #[error("chat template: {0}")]
    TemplateBound(String),
    /// Sizes or weights that cannot work.
    #[error("{0}")]
    Invalid(String),
}

impl DataError {
    /// The error of a template that stands at `place`, which is empty or ends in `: `.
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
