//! One key of the reference, read from the JSON schema of its type.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::Value;

use crate::config::bounds;

/// One key of a table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeyEntry {
    /// Name of the key inside its table.
    pub name: String,
    /// Type of the value, such as `whole number`, with its bound; or the words that it may be.
    pub takes: String,
    /// Default as it would be typed, in backticks; or in words if other keys decide it.
    pub default: String,
    /// Meaning of the key: one sentence.
    pub summary: String,
    /// Further paragraphs, separated by blank lines; may be empty.
    pub details: String,
    /// The words that the value may be, each with its meaning.
    pub words: Vec<(String, String)>,
}

impl KeyEntry {
    /// A key whose value is one of some words.
    pub fn of_words(
        name: &str,
        summary: &str,
        default: &str,
        words: Vec<(String, String)>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            takes: listed(&words),
            default: default.to_owned(),
            summary: summary.to_owned(),
            details: String::new(),
            words,
        }
    }
}

/// The schema of a serialised `T`, without references to other schemas.
pub(super) fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let inlined = settings.with(|settings| settings.inline_subschemas = true);
    Schema::to_value(inlined.into_generator().into_root_schema_for::<T>())
}

/// The keys of `schema`, in the order of the fields, with their values in `defaults`.
pub(super) fn keys(schema: &Value, defaults: &Value, table: &str) -> Vec<KeyEntry> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    properties
        .map(|(name, schema)| {
            let (summary, details) = paragraphs(schema);
            let words = words(schema);
            let default = match &schema["x-default"] {
                Value::Null => shown(&defaults[name.as_str()]),
                Value::String(words) => words.clone(),
                value => shown(value),
            };
            KeyEntry {
                takes: takes(name, schema, &words, table),
                name: name.clone(),
                default,
                summary,
                details,
                words,
            }
        })
        .collect()
}

/// First paragraph of the description of `schema`, and all further ones.
pub(super) fn paragraphs(schema: &Value) -> (String, String) {
    let text = schema["description"].as_str().unwrap_or_default();
    let (first, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    let details: Vec<String> = rest.split("\n\n").map(on_one_line).collect();
    (on_one_line(first), details.join("\n\n"))
}

/// The words that `tag` may be in an enum of tables, each with its meaning.
pub(super) fn words_of_variants(schema: &Value, tag: &str) -> Vec<(String, String)> {
    let variants = schema["oneOf"].as_array().into_iter().flatten();
    let word = |variant: &Value| {
        let word = variant["properties"][tag]["const"].as_str()?.to_owned();
        Some((word, paragraphs(variant).0))
    };
    variants.filter_map(word).collect()
}

/// Type of the value of `schema` in words, with its bound.
fn takes(name: &str, schema: &Value, words: &[(String, String)], table: &str) -> String {
    if !words.is_empty() {
        return listed(words);
    }
    let kind = kind(schema, GrammaticalNumber::One);
    match bounds::most(table, name) {
        Some(most) if kind.ends_with("number") => {
            format!("{kind}, at most {}", bounds::shown(most))
        }
        _ => kind,
    }
}

/// Grammatical number of a type.
#[derive(Clone, Copy)]
enum GrammaticalNumber {
    One,
    Many,
}

fn kind(schema: &Value, number: GrammaticalNumber) -> String {
    if let Some(words) = schema["x-type"].as_str() {
        return words.to_owned();
    }
    if let Some(set) = alternative(schema) {
        return kind(set, number);
    }
    let name = match &schema["type"] {
        Value::Array(names) => names
            .iter()
            .find_map(|name| name.as_str().filter(|n| *n != "null")),
        name => name.as_str(),
    };
    let (one, many) = match name.unwrap_or_default() {
        "integer" => ("whole number", "whole numbers"),
        "number" => ("number", "numbers"),
        "string" => ("text", "texts"),
        "boolean" => ("true or false", "true or false"),
        "array" => {
            return format!(
                "list of {}",
                kind(&schema["items"], GrammaticalNumber::Many)
            );
        }
        _ => ("table", "tables"),
    };
    match number {
        GrammaticalNumber::One => one.to_owned(),
        GrammaticalNumber::Many => many.to_owned(),
    }
}

/// The schema of an optional value other than null.
fn alternative(schema: &Value) -> Option<&Value> {
    let mut alternatives = schema["anyOf"].as_array()?.iter();
    alternatives.find(|schema| schema["type"] != "null")
}

fn words(schema: &Value) -> Vec<(String, String)> {
    let schema = alternative(schema).unwrap_or(schema);
    let variants = schema["oneOf"].as_array().into_iter().flatten();
    let word = |variant: &Value| {
        let word = variant["const"].as_str()?.to_owned();
        Some((word, paragraphs(variant).0))
    };
    variants.filter_map(word).collect()
}

fn listed(words: &[(String, String)]) -> String {
    let words: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
    words.join(", ")
}

/// `value` as it would be typed in TOML.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "unset".to_owned(),
        Value::Number(number) => match number.as_f64() {
            Some(small) if small != 0.0 && small.abs() < 1e-3 => format!("`{small:e}`"),
            _ => format!("`{number}`"),
        },
        value => format!("`{value}`"),
    }
}

fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
