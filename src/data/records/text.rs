//! Plain text: the whole file is one document, the field `text`. Several documents are several
//! files, or JSONL.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Record, RecordPlace, RecordResult, RecordSource, shared_name, utf8};
use crate::data::error::Result;

/// Reads a file's contents as one document; a file of white space has no document.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Vec<RecordResult>> {
    let text = utf8(path, bytes, 1)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let fields = Map::from_iter([("text".to_owned(), Value::from(text))]);
    Ok(vec![Ok(Record {
        fields,
        source: RecordSource {
            file: shared_name(path),
            place: RecordPlace::Line(1),
        },
    })])
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_whole_file_is_one_document() {
        let records = super::read("a.txt".as_ref(), b"one\n\ntwo\n").unwrap();
        assert_eq!(records.len(), 1);
        let record = records[0].as_ref().unwrap();
        assert_eq!(record.text().unwrap(), "one\n\ntwo\n");
    }
}
