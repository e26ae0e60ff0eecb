//! Plain text: the whole file is one document, the field `text`. Several documents are several
//! files, or JSONL.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Place, Record, Source, read_utf8, shared_name};
use crate::data::error::Result;

/// Reads the file as one document; a file of white space holds none.
pub(super) fn read(path: &Path) -> Result<Vec<Record>> {
    let text = read_utf8(path)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let fields = Map::from_iter([("text".to_owned(), Value::String(text))]);
    Ok(vec![Record {
        fields,
        source: Source {
            file: shared_name(path),
            place: Place::Line(1),
        },
    }])
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_whole_file_is_one_document() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, "one\n\ntwo\n").unwrap();
        let records = super::read(&path).unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].text().unwrap(), "one\n\ntwo\n");
    }
}
