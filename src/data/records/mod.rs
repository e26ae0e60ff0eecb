//! Records: what a data file holds, one JSON object each, with where it came from.
//!
//! The field names are those that TRL documents (Hugging Face TRL, "Dataset formats and types"); a
//! record is read as the task at hand asks ([`views`]). Aliases are not accepted silently: a field
//! under another name would train on the wrong thing or on nothing, so the error names the field to
//! rename.

mod jsonl;
mod names;
mod parquet;
mod text;
mod views;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::error::{DataError, Result};
pub use super::error::{Place, Source};
pub use views::{Message, Preference, PromptCompletion, Turns};

/// One record of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// All fields, in the file's order.
    pub fields: Map<String, Value>,
    /// Where it came from.
    pub source: Source,
}

/// Reads a data file whole, by its extension: `.jsonl`, `.ndjson` or `.json` (one object a line, or
/// one array of objects), `.parquet`, `.txt` (one document).
///
/// # Errors
/// A file that cannot be read, a malformed line (with line and column), text that is not UTF-8, or
/// no record at all.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let path = path.as_ref();
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .map(str::to_ascii_lowercase);
    let records = match extension.as_deref() {
        Some("jsonl" | "ndjson" | "json") => jsonl::read(path)?,
        Some("parquet") => parquet::read(path)?,
        Some("txt") => text::read(path)?,
        _ => {
            return Err(DataError::UnknownKind {
                path: path.to_owned(),
            });
        }
    };
    if records.is_empty() {
        return Err(DataError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(records)
}

/// The file's name, shared by its records.
fn shared_name(path: &Path) -> Arc<Path> {
    Arc::from(path)
}

/// Reads a file as UTF-8, naming line and byte of the first bad byte.
fn read_utf8(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| DataError::io(path, e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line_start = good.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        DataError::Utf8 {
            file: path.to_owned(),
            line: good.iter().filter(|&&b| b == b'\n').count() + 1,
            byte: good.len() - line_start + 1,
        }
    })?;
    // A byte order mark belongs to the encoding, not to the text.
    Ok(text
        .strip_prefix('\u{feff}')
        .map(str::to_owned)
        .unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_told_by_extension() {
        let e = read("data.csv").unwrap_err().to_string();
        assert!(e.contains("data.csv") && e.contains(".jsonl"), "{e}");
        let e = read("no/such/file.jsonl").unwrap_err().to_string();
        assert!(
            e.contains("no/such/file.jsonl") && e.contains("check the path"),
            "{e}"
        );
    }

    #[test]
    fn bad_utf8_names_line_and_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, b"good\nab\xff").unwrap();
        let e = read(&path).unwrap_err().to_string();
        assert!(e.contains("a.txt:2:") && e.contains("byte 3"), "{e}");
    }

    #[test]
    fn empty_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        for (name, body) in [("a.jsonl", "\n  \n"), ("b.json", "[]"), ("c.txt", "")] {
            let path = dir.path().join(name);
            std::fs::write(&path, body).unwrap();
            let e = read(&path).unwrap_err().to_string();
            assert!(e.contains("is empty"), "{name}: {e}");
        }
    }
}
