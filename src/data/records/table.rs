//! CSV and TSV: a row is a record, its fields under the names of the first row.
//!
//! Every field is text except [`NUMBERS`] and [`LISTS`]. An empty field is left out, as a null in
//! Parquet. Quotes follow RFC 4180.

use std::collections::BTreeSet;
use std::path::Path;

use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value};

use super::contents::unreadable;
use super::names::shown;
use super::strict::Strict;
use super::{Record, RecordPlace, RecordResult, RecordSource, shared_name, utf8};
use crate::data::error::{DataError, Result};

/// Fields that are read as numbers.
const NUMBERS: [&str; 2] = ["margin", "max_new_tokens"];

/// Fields that are read as lists in JSON.
const LISTS: [&str; 6] = [
    "messages",
    "conversations",
    "history",
    "tools",
    "ids",
    "prompt_ids",
];

/// Reads a file's contents; a bad row is an entry with its error.
pub(super) fn read(path: &Path, bytes: &[u8], delimiter: u8) -> Result<Vec<RecordResult>> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        .from_reader(bytes);
    let broken = |e: csv::Error| unreadable(path, format!("not a readable table: {e}"));
    let names = header(path, reader.byte_headers().map_err(broken)?, delimiter)?;
    let (file, mut entries) = (shared_name(path), Vec::new());
    let mut row = ByteRecord::new();
    let mut lines = RowReader::new(bytes);
    while reader.read_byte_record(&mut row).map_err(broken)? {
        let start = row.position().map_or(0, |at| at.byte() as usize);
        let source = RecordSource {
            file: file.clone(),
            place: RecordPlace::Line(lines.of_record(start)),
        };
        let end = reader.position().byte() as usize;
        let raw = bytes.get(lines.at..end).unwrap_or_default();
        let closed = is_closed(raw, delimiter, end >= bytes.len());
        entries.push(match closed {
            true => record(path, &names, &row, source),
            false => Err(wrong(
                source,
                "a quote that opens here is never closed; close it, or double the quotes that are \
                 text",
            )),
        });
    }
    Ok(entries)
}

/// Counts the lines before each record; records come in order.
struct RowReader<'b> {
    bytes: &'b [u8],
    at: usize,
    line: usize,
}

impl<'b> RowReader<'b> {
    fn new(bytes: &'b [u8]) -> Self {
        let (at, line) = (0, 1);
        Self { bytes, at, line }
    }

    /// The line of the record that is read from byte `start` on, after any empty lines.
    fn of_record(&mut self, start: usize) -> usize {
        let is_end = |&&byte: &&u8| byte == b'\n' || byte == b'\r';
        let start = start.min(self.bytes.len());
        let first = start + self.bytes[start..].iter().take_while(is_end).count();
        let between = self.bytes.get(self.at..first).unwrap_or_default();
        self.line += between.iter().filter(|&&byte| byte == b'\n').count();
        self.at = first;
        self.line
    }
}

/// True if every quote that opens a field of the last row is closed; the reader checks the other
/// rows.
fn is_closed(raw: &[u8], delimiter: u8, last: bool) -> bool {
    if !last || raw.iter().filter(|&&byte| byte == b'"').count() % 2 == 0 {
        return true;
    }
    let opens = |pair: &[u8]| (pair[0] == delimiter || pair[0] == b'\n') && pair[1] == b'"';
    !(raw.starts_with(b"\"") || raw.windows(2).any(opens))
}

fn header(path: &Path, row: &ByteRecord, delimiter: u8) -> Result<Vec<String>> {
    let mut names = Vec::with_capacity(row.len());
    for (index, name) in row.iter().enumerate() {
        let name = utf8(path, name, 1)?.trim();
        names.push(match name {
            "" => format!("(column {})", index + 1), // pandas leaves the index without a name
            name => name.to_owned(),
        });
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
        return Err(unreadable(
            path,
            format!("two columns are called `{twice}`; rename one"),
        ));
    }
    if let [only] = names.as_slice()
        && let Some(other) = [';', '\t', '|', ',']
            .into_iter()
            .find(|&c| c != char::from(delimiter) && only.contains(c))
    {
        let message = format!(
            "its first row is one column, `{only}`; columns are separated by {:?} here (a comma in \
             .csv, a tab in .tsv), not by {other:?}",
            char::from(delimiter)
        );
        return Err(unreadable(path, message));
    }
    Ok(names)
}

fn record(path: &Path, names: &[String], row: &ByteRecord, source: RecordSource) -> Result<Record> {
    if row.len() != names.len() {
        let message = format!(
            "the row has {} fields and the first row {}; quote fields that hold separators or \
             line ends, or leave such rows out with bad_records = \"skip\"",
            row.len(),
            names.len()
        );
        return Err(wrong(source, message));
    }
    let mut fields = Map::new();
    for (name, field) in names.iter().zip(row) {
        let Ok(text) = std::str::from_utf8(field) else {
            let message = format!(
                "column `{name}` is not UTF-8; convert {} to UTF-8",
                path.display()
            );
            return Err(wrong(source, message));
        };
        if !text.is_empty() {
            fields.insert(name.clone(), text.into());
        }
    }
    Ok(Record { fields, source })
}

/// Parses the fields that are numbers or lists, after columns were renamed.
pub(super) fn typed(entries: &mut [RecordResult]) {
    for entry in entries {
        let Ok(record) = entry else { continue };
        if let Err(error) = number_fields(record).and_then(|()| list_fields(record)) {
            *entry = Err(error);
        }
    }
}

fn list_fields(record: &mut Record) -> Result<()> {
    for name in LISTS {
        let Some(Value::String(text)) = record.fields.get(name) else {
            continue;
        };
        let Ok(Strict(list @ Value::Array(_))) = serde_json::from_str(text) else {
            let found = shown(&record.fields[name]);
            let message = format!(
                "column `{name}` is {found}; expected a list in JSON; JSON Lines and Parquet \
                 hold lists as they are"
            );
            return Err(wrong(record.source.clone(), message));
        };
        record.fields.insert(name.to_owned(), list);
    }
    Ok(())
}

fn number_fields(record: &mut Record) -> Result<()> {
    for name in NUMBERS {
        let Some(Value::String(text)) = record.fields.get(name) else {
            continue;
        };
        let whole = text.trim().parse::<u64>().map(Value::from).ok();
        let number = whole.or_else(|| {
            let number = text.trim().parse::<f64>().ok()?;
            serde_json::Number::from_f64(number).map(Value::Number)
        });
        let Some(number) = number else {
            let found = shown(&record.fields[name]);
            let message = format!("column `{name}` is {found}; expected a number");
            return Err(wrong(record.source.clone(), message));
        };
        record.fields.insert(name.to_owned(), number);
    }
    Ok(())
}

fn wrong(at: RecordSource, message: impl Into<String>) -> DataError {
    DataError::Record {
        at,
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(name: &str, body: &str) -> Result<Vec<RecordResult>> {
        let delimiter = if name.ends_with("tsv") { b'\t' } else { b',' };
        let mut entries = read(Path::new(name), body.as_bytes(), delimiter)?;
        typed(&mut entries);
        Ok(entries)
    }

    fn error(body: &str) -> String {
        let found: Result<Vec<Record>> =
            entries("d.csv", body).and_then(|e| e.into_iter().collect());
        found.unwrap_err().to_string()
    }

    #[test]
    fn rows_become_records_with_their_lines() {
        let body = "\u{feff}prompt, completion,margin\r\n\"a, \"\"b\"\"\nc\",d,\r\n\r\ne,,1.5\r\n";
        let entries = entries("d.csv", body).unwrap();
        let records: Vec<&Record> = entries.iter().map(|e| e.as_ref().unwrap()).collect();
        assert_eq!(records[0].fields["prompt"], "a, \"b\"\nc");
        assert_eq!(records[0].fields["completion"], "d");
        assert!(!records[0].fields.contains_key("margin"));
        assert_eq!(records[1].fields["margin"], 1.5);
        assert!(
            !records[1].fields.contains_key("completion"),
            "an empty field is none"
        );
        let places: Vec<String> = records.iter().map(|r| r.source.to_string()).collect();
        assert_eq!(places, ["d.csv:2", "d.csv:5"]);
    }

    #[test]
    fn an_empty_cell_that_is_needed_is_told() {
        let entries = entries("d.csv", "prompt,completion\na,\n").unwrap();
        let record = entries[0].as_ref().unwrap();
        let e = record.prompt_completion().unwrap_err().to_string();
        let says = "d.csv:2: missing field `completion`";
        assert!(
            e.contains(says) && e.contains("an empty cell counts as missing"),
            "{e}"
        );
    }

    #[test]
    fn tabs_separate_tsv_and_numbers_stay_text() {
        let entries = entries("d.tsv", "prompt\tanswer\na,b\t7\n").unwrap();
        let fields = &entries[0].as_ref().unwrap().fields;
        assert_eq!(
            (&fields["prompt"], &fields["answer"]),
            (&"a,b".into(), &"7".into())
        );
    }

    #[test]
    fn rows_that_are_wrong_are_named_and_leave_the_others() {
        let entries = entries("d.csv", "a,b\n1\n1,2,3\n1,2\n").unwrap();
        let good: Vec<bool> = entries.iter().map(Result::is_ok).collect();
        assert_eq!(good, [false, false, true]);
        let e = error("a,b\n1,2\n1\n");
        assert!(
            e.contains("d.csv:3: the row has 1 fields and the first row 2")
                && e.contains("bad_records = \"skip\""),
            "{e}"
        );
        let e = error("prompt,margin\na,high\n");
        assert!(
            e.contains("d.csv:2: column `margin` is \"high\"; expected a number"),
            "{e}"
        );
        let e = error("prompt,margin\na,inf\n");
        assert!(e.contains("column `margin` is \"inf\""), "{e}");
    }

    #[test]
    fn lists_are_json() {
        let body =
            "messages,prompt\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"a\"\"}]\",[b]\n";
        let entries = entries("d.csv", body).unwrap();
        let record = entries[0].as_ref().unwrap();
        assert_eq!(record.messages().unwrap()[0].content(), Some("a"));
        assert_eq!(
            record.fields["prompt"], "[b]",
            "a prompt is text, whatever it looks like"
        );
        let e = error("messages\n[{'role': 'user'}]\n");
        assert!(
            e.contains(
                "d.csv:2: column `messages` is \"[{'role': 'user'}]\"; expected a list in JSON"
            ),
            "{e}"
        );
    }

    #[test]
    fn a_quote_that_is_never_closed_is_told() {
        let e = error("a,b\n1,2\n3,\"4\n5,6\n7,8\n");
        assert!(
            e.contains("d.csv:3: a quote that opens here is never closed"),
            "{e}"
        );
        let e = error("a,b\n1,\"2");
        assert!(e.contains("d.csv:2: a quote"), "{e}");
        assert!(
            entries("d.csv", "a,b\n1,5\" pipe\n").unwrap()[0].is_ok(),
            "a quote within a field is text"
        );
        assert!(entries("d.csv", "a,b\n1,\"x \"\"y\"\"\"\n").unwrap()[0].is_ok());
    }

    #[test]
    fn headers_that_cannot_be_are_refused() {
        let e = error("a,a\n1,2\n");
        assert!(e.contains("two columns are called `a`"), "{e}");
        let e = error("prompt;completion\na;b\n");
        assert!(e.contains("one column") && e.contains("';'"), "{e}");
    }
}
