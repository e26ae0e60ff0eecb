//! Field names and types in words: what a record should have, and which of its
//! fields was probably meant.

use serde_json::{Map, Value};

use super::Source;
use crate::data::error::DataError;

/// Names under which other sets keep our fields. They are pointed out, never accepted.
const ALIASES: [(&str, &[&str]); 7] = [
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
];

/// What a JSON value is, in words.
pub(super) fn type_name(value: &Value) -> &'static str {
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
/// field to rename if one looks like it.
pub(super) fn missing_field(
    at: &Source,
    fields: &Map<String, Value>,
    path: &str,
    field: &str,
    expected: &'static str,
) -> DataError {
    let hint = likely_name(fields, field).map_or(String::new(), |name| {
        format!("; rename `{name}` to `{field}`")
    });
    let names: Vec<_> = fields.keys().map(|name| format!("`{name}`")).collect();
    let present = if names.is_empty() {
        "no fields".into()
    } else {
        names.join(", ")
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
        hint,
        present,
    }
}

/// A present field that is probably the wanted one under another name: a known alias, or a near
/// spelling.
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
