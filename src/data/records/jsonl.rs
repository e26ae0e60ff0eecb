//! JSON Lines: one object a line, blank lines skipped. A file that starts with `[` is one array of
//! objects.

use std::path::Path;

use serde_json::Value;

use super::{Place, Record, Source, read_utf8, shared_name};
use crate::data::error::{DataError, Result};

/// Reads the file; see the module's head.
pub(super) fn read(path: &Path) -> Result<Vec<Record>> {
    let text = read_utf8(path)?;
    if text.trim_start().starts_with('[') {
        return read_array(path, &text);
    }
    let file = shared_name(path);
    let mut records = Vec::new();
    for (index, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let source = Source {
            file: file.clone(),
            place: Place::Line(index + 1),
        };
        let value = serde_json::from_str(line).map_err(|e| malformed(path, index + 1, line, &e))?;
        records.push(object(value, source)?);
    }
    Ok(records)
}

/// One array of objects. JSON values do not keep their lines, so a record is known by its number.
fn read_array(path: &Path, text: &str) -> Result<Vec<Record>> {
    let values: Vec<Value> =
        serde_json::from_str(text).map_err(|e| malformed(path, e.line(), text, &e))?;
    let file = shared_name(path);
    values
        .into_iter()
        .enumerate()
        .map(|(i, value)| {
            object(
                value,
                Source {
                    file: file.clone(),
                    place: Place::Record(i + 1),
                },
            )
        })
        .collect()
}

fn object(value: Value, source: Source) -> Result<Record> {
    match value {
        Value::Object(fields) => Ok(Record { fields, source }),
        other => Err(DataError::FieldType {
            at: source,
            field: "(whole record)".into(),
            found: super::names::type_name(&other),
            expected: "an object such as {\"prompt\": \"...\", \"completion\": \"...\"}",
        }),
    }
}

fn malformed(path: &Path, line: usize, text: &str, error: &serde_json::Error) -> DataError {
    // serde's own " at line 1 column 7" counts lines from the text it was given; ours counts from
    // the file.
    let words = error.to_string();
    let message = words.split(" at line ").next().unwrap_or(&words);
    let hint = match (error.is_eof(), text.trim() == "{") {
        (true, true) => "; an object must stand on one line, or the file must be one array",
        (true, false) => "; the line is cut short",
        _ => "",
    };
    DataError::Json {
        file: path.to_owned(),
        line,
        column: error.column(),
        message: format!("{message}{hint}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(body: &str) -> Result<Vec<Record>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        std::fs::write(&path, body).unwrap();
        read(&path)
    }

    #[test]
    fn lines_keep_their_numbers_and_fields_their_order() {
        let records = read_text("\u{feff}\n{\"b\": 1, \"a\": \"x\"}\r\n\n{\"a\": 2}").unwrap();
        let places: Vec<_> = records.iter().map(|r| r.source.place).collect();
        assert_eq!(places, [Place::Line(2), Place::Line(4)]);
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
}
