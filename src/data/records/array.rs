//! A JSON file that is one array: each item is checked separately, so that a bad item does not
//! affect the others.

use std::path::Path;

use serde::de::IgnoredAny;
use serde_json::Deserializer;

use super::strict::{Strict, malformed, object};
use super::{Record, RecordPlace, RecordResult, RecordSource, shared_name};
use crate::data::error::{DataError, Result};

/// Replaces a byte that is not UTF-8 while the items are separated.
const MASK: u8 = b'?';

/// The items of an array of objects.
///
/// # Errors
/// If the array is not JSON, so that the ends of its items are not known.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Vec<RecordResult>> {
    let file = shared_name(path);
    let items = items(path, bytes)?;
    let entries = items.into_iter().enumerate().map(|(i, (start, end))| {
        let source = RecordSource {
            file: file.clone(),
            place: RecordPlace::Record(i + 1),
        };
        item(path, bytes, start, end, source)
    });
    Ok(entries.collect())
}

/// Start and end of each item, in bytes.
fn items(path: &Path, bytes: &[u8]) -> Result<Vec<(usize, usize)>> {
    let text = masked(bytes);
    let count: Vec<IgnoredAny> =
        serde_json::from_str(&text).map_err(|e| malformed(path, e.line(), &text, &e))?;
    let mut at = 0;
    let mut items = Vec::with_capacity(count.len());
    for _ in count {
        // Skips the bracket or comma, and white space.
        let rest = text[at..].trim_start();
        let rest = rest[1..].trim_start();
        let start = text.len() - rest.len();
        let mut values = Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        let value = values.next().transpose();
        value.map_err(|e| malformed(path, e.line(), &text, &e))?;
        at = start + values.byte_offset();
        items.push((start, at));
    }
    Ok(items)
}

/// The bytes as text of the same length, with [`MASK`] in place of bytes that are not UTF-8.
fn masked(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::from(MASK)));
    }
    text
}

/// The record of the item from `start` to `end`.
fn item(
    path: &Path,
    bytes: &[u8],
    start: usize,
    end: usize,
    source: RecordSource,
) -> Result<Record> {
    let text = std::str::from_utf8(&bytes[start..end]).map_err(|e| {
        let (line, byte) = place(bytes, start + e.valid_up_to());
        DataError::Utf8 {
            file: path.to_owned(),
            line,
            byte,
        }
    })?;
    let value: Strict = serde_json::from_str(text).map_err(|e| {
        let (first, column) = place(bytes, start);
        let mut error = malformed(path, first + e.line() - 1, text, &e);
        if let (DataError::Json { column: found, .. }, 1) = (&mut error, e.line()) {
            *found += column - 1;
        }
        error
    })?;
    object(value, source)
}

/// Line and byte in the line of a position in the file, both counted from 1.
fn place(bytes: &[u8], at: usize) -> (usize, usize) {
    let before = &bytes[..at];
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let start = before.iter().rposition(|&byte| byte == b'\n');
    (line, at - start.map_or(0, |newline| newline + 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8]) -> Vec<String> {
        let entries = read(Path::new("d.json"), bytes).unwrap().into_iter();
        entries
            .map(|entry| match entry {
                Ok(record) => record.fields["a"].to_string(),
                Err(error) => error.to_string(),
            })
            .collect()
    }

    #[test]
    fn an_item_that_is_wrong_leaves_the_others() {
        let body =
            b" [ {\"a\": \"\xc3\xa9,]\"} ,\n{\"a\": 1,\n \"a\": 2},\n {\"a\": \"\xff\"},3 , \
                     {\"a\": 1e999},\n{\"a\": 5}\n] ";
        let found = said(body);
        assert_eq!(found.len(), 6, "{found:?}");
        assert_eq!((&*found[0], &*found[5]), ("\"é,]\"", "5"));
        for (error, says) in found[1..5].iter().zip([
            "d.json:3:4: malformed JSON: duplicate key `a`",
            "d.json:4: invalid UTF-8 at byte 9",
            "d.json: record 4: field `(whole record)` is a number",
            "d.json:4:",
        ]) {
            assert!(error.contains(says), "{says:?} is not in: {error}");
        }
    }

    #[test]
    fn a_place_on_an_item_s_first_line_counts_from_the_line_s_start() {
        let found = said(b"[{\"a\": 1}, {\"a\": 1, \"a\": 2}]");
        assert!(
            found[1].starts_with("d.json:1:23: malformed JSON: duplicate key `a`"),
            "{found:?}"
        );
    }

    #[test]
    fn an_array_that_is_cut_or_goes_on_is_refused_whole() {
        for (body, says) in [
            ("[{\"a\": 1}", "d.json:1:"),
            ("[{\"a\": 1}] 3", "trailing characters"),
            ("[{\"a\": 1} {\"a\": 2}]", "d.json:1:11"),
        ] {
            let e = read(Path::new("d.json"), body.as_bytes()).unwrap_err();
            assert!(e.to_string().contains(says), "{says:?} is not in: {e}");
        }
        assert!(said(b"[]").is_empty());
    }
}
