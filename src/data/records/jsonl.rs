//! JSON Lines: one object a line, blank lines skipped. A file that starts with `[` is one array of
//! objects ([`array`]).

use std::path::Path;

use super::strict::{malformed, object};
use super::{Record, RecordPlace, RecordResult, RecordSource, array, shared_name, utf8};
use crate::data::error::Result;

/// Reads a file's contents; a bad line is an entry with its error.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Vec<RecordResult>> {
    let body = bytes.strip_prefix(BOM).unwrap_or(bytes);
    if body.trim_ascii_start().starts_with(b"[") {
        return array::read(path, body);
    }
    let file = shared_name(path);
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    let entries = lines.map(|(index, line)| {
        let source = RecordSource {
            file: file.clone(),
            place: RecordPlace::Line(index + 1),
        };
        read_line(path, index + 1, line, source)
    });
    Ok(entries.filter_map(Result::transpose).collect())
}

/// A byte order mark; concatenated files have some in the middle.
const BOM: &[u8] = "\u{feff}".as_bytes();

/// The record of a line; `None` for a blank line.
fn read_line(
    path: &Path,
    number: usize,
    line: &[u8],
    source: RecordSource,
) -> Result<Option<Record>> {
    let line = utf8(path, line, number)?;
    if line.trim().is_empty() {
        return Ok(None);
    }
    let value = serde_json::from_str(line).map_err(|e| malformed(path, number, line, &e))?;
    object(value, source).map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn entries(body: &[u8]) -> Result<Vec<RecordResult>> {
        read(Path::new("d.jsonl"), body)
    }

    fn read_text(body: &str) -> Result<Vec<Record>> {
        entries(body.as_bytes())?.into_iter().collect()
    }

    #[test]
    fn lines_keep_their_numbers_and_fields_their_order() {
        let records = read_text("\u{feff}\n{\"b\": 1, \"a\": \"x\"}\r\n\n{\"a\": 2}").unwrap();
        let places: Vec<_> = records.iter().map(|r| r.source.place).collect();
        assert_eq!(places, [RecordPlace::Line(2), RecordPlace::Line(4)]);
        assert_eq!(records[0].fields.keys().collect::<Vec<_>>(), ["b", "a"]);
    }

    #[test]
    fn arrays_are_read() {
        assert_eq!(read_text(" [{\"a\": 1},\n {\"a\": 2}]").unwrap().len(), 2);
        let e = read_text("[{\"a\": 1},\n {\"a\" 2}]")
            .unwrap_err()
            .to_string();
        assert!(e.contains("d.jsonl:2:7"), "{e}");
    }

    #[test]
    fn a_record_of_an_array_is_named_by_its_number() {
        let records = read_text("[\n{\"a\":\n1},\n{\"b\": 2}]").unwrap();
        let e = records[1].text().unwrap_err().to_string();
        assert!(e.contains("d.jsonl: record 2: missing field"), "{e}");
        let e = read_text("[\n\n3]").unwrap_err().to_string();
        assert!(
            e.contains("d.jsonl: record 1: ") && e.contains("a number"),
            "{e}"
        );
    }

    #[test]
    fn a_malformed_line_is_named_with_its_column() {
        let e = read_text("{\"a\": 1}\n{\"a\": x}").unwrap_err().to_string();
        assert!(
            e.contains("d.jsonl:2:7: malformed JSON: expected value"),
            "{e}"
        );
        let e = read_text("{\"a\": \"cut").unwrap_err().to_string();
        assert!(e.contains("cut short"), "{e}");
        let e = read_text("{\n\"a\": 1\n}").unwrap_err().to_string();
        assert!(e.contains("one line"), "{e}");
        let e = read_text("3").unwrap_err().to_string();
        assert!(e.contains("d.jsonl:1") && e.contains("a number"), "{e}");
    }

    #[test]
    fn a_line_that_is_wrong_leaves_the_others() {
        let body = b"{\"a\": 1}\n{\"a\": \n\"\xff\"\n7\n\xef\xbb\xbf{\"a\": 2}\r\n";
        let entries = entries(body).unwrap();
        let found: Vec<String> = entries
            .iter()
            .map(|entry| match entry {
                Ok(record) => record.source.to_string(),
                Err(error) => error.to_string(),
            })
            .collect();
        assert_eq!(found.len(), 5, "{found:?}");
        assert_eq!((&*found[0], &*found[4]), ("d.jsonl:1", "d.jsonl:5"));
        for (error, says) in found[1..4].iter().zip([
            "d.jsonl:2:6: malformed JSON",
            "d.jsonl:3: invalid UTF-8 at byte 2",
            "d.jsonl:4: field `(whole record)` is a number",
        ]) {
            assert!(error.contains(says), "{says:?} is not in: {error}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        for (body, says) in [
            (
                "{\"a\": 1, \"a\": 2}",
                "d.jsonl:1:12: malformed JSON: duplicate key `a`",
            ),
            ("{\"m\": [{\"b\": 1, \"b\": 1}]}", "duplicate key `b`"),
            ("[{\"a\": 1, \"a\": 2}]", "duplicate key `a`"),
        ] {
            let e = read_text(body).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
    }

    #[test]
    fn numbers_keep_their_kinds() {
        let body = r#"{"a": [1, -1, 0.5, 18446744073709551615, true, null, {}]}"#;
        let record = &read_text(body).unwrap()[0];
        let expected: Value = serde_json::from_str(body).unwrap();
        assert_eq!(Value::Object(record.fields.clone()), expected);
    }
}
