//! Field names and types in messages: the fields that a record should have, and the one that was
//! probably meant.

use serde_json::{Map, Value};

use super::{RecordSource, contents};
use crate::data::error::DataError;

/// Other names of our fields in published datasets. Messages suggest them; they are read only if
/// `columns` maps them.
const ALIASES: [(&str, &[&str]); 9] = [
    (
        "prompt",
        &[
            "instruction",
            "question",
            "query",
            "input",
            "context",
            "problem",
        ],
    ),
    (
        "completion",
        &["response", "output", "answer", "target", "reply", "summary"],
    ),
    (
        "messages",
        &[
            "conversations",
            "conversation",
            "chat",
            "dialog",
            "dialogue",
            "turns",
        ],
    ),
    (
        "chosen",
        &[
            "preferred",
            "accepted",
            "winner",
            "better",
            "response_chosen",
            "y_w",
        ],
    ),
    (
        "rejected",
        &[
            "dispreferred",
            "refused",
            "loser",
            "worse",
            "response_rejected",
            "y_l",
        ],
    ),
    (
        "text",
        &["content", "document", "body", "raw_content", "passage"],
    ),
    ("role", &["from", "speaker", "author"]),
    ("instruction", &["prompt", "question", "query", "problem"]),
    (
        "output",
        &["response", "completion", "answer", "target", "reply"],
    ),
];

/// The key of an object that replaces a value that JSON cannot hold.
const UNREAD: &str = "\0unread";

/// Types of values that JSON cannot hold.
const UNREAD_TYPES: [&str; 4] = [
    "binary that is not UTF-8",
    "a number that is not finite",
    "a date or time out of range",
    "an interval",
];

/// The replacement of a value that JSON cannot hold; `words` name its type.
pub(super) fn unread(words: &'static str) -> Value {
    Value::Object(Map::from_iter([(UNREAD.to_owned(), words.into())]))
}

/// True if the value replaces one that JSON cannot hold.
pub fn is_unread(value: &Value) -> bool {
    value.get(UNREAD).is_some()
}

/// Type of a value, in words.
pub(super) fn type_name(value: &Value) -> &'static str {
    if let Some(found) = value.get(UNREAD) {
        let known = UNREAD_TYPES.iter().find(|words| *found == **words);
        return known.copied().unwrap_or("a value that cannot be read");
    }
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The error of a missing field of the object at `path` (empty for the record itself), with the
/// similar field to rename, if there is one.
pub(super) fn missing_field(
    at: &RecordSource,
    fields: &Map<String, Value>,
    path: &str,
    field: &str,
    expected: &'static str,
) -> DataError {
    let mend = |name: &str| match path.is_empty() {
        true => {
            format!("; rename `{name}` to `{field}`, or set columns = {{ {field} = \"{name}\" }}")
        }
        false => format!("; rename `{name}` to `{field}`"),
    };
    let hint = likely_name(fields, field).map_or(String::new(), mend);
    let empty_cell = match contents::is_table(&at.file) && hint.is_empty() && path.is_empty() {
        true => "; an empty cell counts as missing",
        false => "",
    };
    let present = match fields.is_empty() {
        true => "no fields".into(),
        false => listed(&fields.keys().collect::<Vec<_>>()),
    };
    let field = if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    };
    DataError::MissingField {
        at: at.clone(),
        field,
        expected,
        hint: hint + empty_cell,
        present,
    }
}

/// Largest number of characters of a value in an error.
const SHOWN: usize = 40;

/// A value as errors show it, cut if it is long.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Largest number of names in a list; wide tables have hundreds.
const MOST_NAMES: usize = 12;

/// Names in quotes, and the number of those beyond the largest.
pub fn listed(names: &[impl std::fmt::Display]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(MOST_NAMES)
        .map(|name| format!("`{name}`"))
        .collect();
    match names.len().saturating_sub(MOST_NAMES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A field of the record that is probably the missing one: a known alias, or a similar spelling.
pub(super) fn likely_name<'a>(fields: &'a Map<String, Value>, wanted: &str) -> Option<&'a str> {
    let aliases = ALIASES
        .iter()
        .find(|(name, _)| *name == wanted)
        .map_or(&[][..], |(_, a)| *a);
    let names = || fields.keys().map(String::as_str);
    let known = |name: &&str| aliases.contains(&name.to_lowercase().as_str());
    names().find(known).or_else(|| {
        let distance = |name: &str| strsim::damerau_levenshtein(&name.to_lowercase(), wanted);
        names()
            .map(|n| (distance(n), n))
            .min()
            .filter(|(d, _)| *d <= 2)
            .map(|(_, n)| n)
    })
}
