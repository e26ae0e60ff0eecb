//! Records: the JSON objects of a data file, each with its position in the file.
//!
//! A file is opened and unpacked (`contents`), cut into entries by its kind, and its columns get
//! the names that the configuration gives them (`columns`). Field names are those that TRL
//! documents (Hugging Face TRL, "Dataset formats and types"); other common shapes are converted to
//! them as the task needs ([`shapes`]), and then read (`views`). A field that has another name is
//! not read, so the error names the field to rename.

mod array;
mod columns;
mod contents;
mod jsonl;
mod left_out;
mod names;
mod parquet;
pub mod shapes;
mod strict;
mod table;
mod text;
mod views;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::error::{DataError, Result};
pub use super::error::{RecordPlace, RecordSource};
use crate::config::{BadRecords, Columns};
use crate::terminal::Phase;
use contents::FileKind;
pub use left_out::LeftOut;
pub use names::{is_unread, listed};
pub use views::{Message, Preference, PromptCompletion, Turns};

/// One record of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// All fields, in the file's order.
    pub fields: Map<String, Value>,
    /// The file and the position that the record came from.
    pub source: RecordSource,
}

/// A record, or the error of the entry at its position.
pub type RecordResult = Result<Record>;

/// The records of a file, without those that could not be read.
#[derive(Debug, Default)]
pub struct File {
    /// The records, in the file's order.
    pub records: Vec<Record>,
    /// Records that could not be read and were left out.
    pub bad: LeftOut,
}

/// Reads a data file whole, by its kind: `.jsonl`, `.ndjson` or `.json` (one object a line, or one
/// array of objects), `.csv`, `.tsv`, `.parquet`, `.txt` (one document). All but Parquet may be
/// compressed by gzip or zstd.
///
/// # Errors
/// If the file cannot be read, a line is malformed (with line and column), text is not UTF-8, or
/// there is no record.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    entries(path.as_ref(), None)?.into_iter().collect()
}

/// Reads a data file whole and renames its `columns`; `bad` is the policy for records that cannot
/// be read.
///
/// # Errors
/// The errors of [`read`], bad records only if these are errors; and a column that no record has.
pub fn read_file(path: &Path, columns: Option<&Columns>, bad: BadRecords) -> Result<File> {
    let mut file = File::default();
    for entry in entries(path, columns)? {
        match entry {
            Ok(record) => file.records.push(record),
            Err(error) => file.bad.leave_out(error, bad)?,
        }
    }
    Ok(file)
}

/// Reads a data file whole; a record that cannot be read is an entry with its error.
///
/// # Errors
/// If the file cannot be read, has no record, or no record has one of the columns.
pub fn entries(path: &Path, columns: Option<&Columns>) -> Result<Vec<RecordResult>> {
    let _phase = Phase::begin(format!("reading {}", path.display()));
    let contents = contents::read(path)?;
    let mut entries = match contents.kind {
        FileKind::Json => jsonl::read(path, &contents.bytes)?,
        FileKind::Table { delimiter } => table::read(path, &contents.bytes, delimiter)?,
        FileKind::Text => text::read(path, &contents.bytes)?,
        FileKind::Parquet => parquet::read(path)?,
    };
    if entries.is_empty() {
        return Err(DataError::Empty {
            path: path.to_owned(),
        });
    }
    if let Some(columns) = columns {
        columns::rename(path, &mut entries, columns)?;
    }
    if let FileKind::Table { .. } = contents.kind {
        table::typed(&mut entries);
    }
    Ok(entries)
}

/// The file's name, shared by its records.
fn shared_name(path: &Path) -> Arc<Path> {
    Arc::from(path)
}

/// Bytes that start on line `first` as UTF-8, or an error that names line and byte of the first bad
/// byte.
fn utf8<'b>(path: &Path, bytes: &'b [u8], first: usize) -> Result<&'b str> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let good = &bytes[..e.valid_up_to()];
        let line_start = good.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        DataError::Utf8 {
            file: path.to_owned(),
            line: good.iter().filter(|&&b| b == b'\n').count() + first,
            byte: good.len() - line_start + 1,
        }
    })?;
    // A byte order mark belongs to the encoding, not to the text.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_told_by_extension() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.xml");
        std::fs::write(&path, "<a/>").unwrap();
        let e = read(&path).unwrap_err().to_string();
        assert!(e.contains("data.xml") && e.contains(".jsonl"), "{e}");
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
        for (name, body) in [
            ("a.jsonl", "\n  \n"),
            ("b.json", "[]"),
            ("c.txt", ""),
            ("d.csv", ""),
            ("e.csv", "a,b\n"),
            ("f.jsonl.gz", ""),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, body).unwrap();
            let e = read(&path).unwrap_err().to_string();
            assert!(e.contains("is empty"), "{name}: {e}");
        }
    }
}
