//! A template's variables besides the messages: a record's fields `tools` and
//! `chat_template_kwargs` (TRL's names), as in `apply_chat_template(messages, tools=...,
//! **chat_template_kwargs)`.

use serde_json::{Map, Value};

use crate::data::error::{DataError, Result};
use crate::data::records::Record;

const TOOLS: &str = "tools";
const KWARGS: &str = "chat_template_kwargs";

/// Arguments of `apply_chat_template` that are not variables of the template.
const ARGUMENTS: [&str; 15] = [
    "conversation",
    "messages",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "sanitize_control_tokens",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
];

/// Variables of a template besides the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Variables {
    /// JSON schemas of functions that the assistant may call.
    pub tools: Option<Vec<Value>>,
    /// Other variables, such as `enable_thinking`. They take precedence over special tokens of the
    /// same name.
    pub others: Map<String, Value>,
}

impl Variables {
    /// Reads the fields of a record; each may be a string that contains JSON, as in columns of
    /// tables.
    ///
    /// # Errors
    /// If a field has another type, or a variable is an argument of `apply_chat_template`.
    pub fn of(record: &Record) -> Result<Self> {
        let variables = Variables {
            tools: tools(record)?,
            others: others(record)?,
        };
        match ARGUMENTS
            .iter()
            .find(|name| variables.others.contains_key(**name))
        {
            None => Ok(variables),
            Some(name) => Err(wrong(
                record,
                format!(
                    "`{KWARGS}.{name}` is no variable of the template but an argument of \
                     apply_chat_template, which the task at hand sets; remove it"
                ),
            )),
        }
    }
}

fn tools(record: &Record) -> Result<Option<Vec<Value>>> {
    match field(record, TOOLS)? {
        Value::Null => Ok(None),
        Value::Array(tools) if tools.iter().all(Value::is_object) => Ok(Some(tools)),
        other => Err(wrong(
            record,
            format!(
                "`{TOOLS}` is {}; expected a list of JSON schemas {{\"type\": \"function\", ...}}, \
                 or that list as a string",
                shortened(&other)
            ),
        )),
    }
}

fn others(record: &Record) -> Result<Map<String, Value>> {
    match field(record, KWARGS)? {
        Value::Null => Ok(Map::new()),
        Value::Object(others) => Ok(others),
        other => Err(wrong(
            record,
            format!(
                "`{KWARGS}` is {}; expected an object such as {{\"enable_thinking\": false}}, or \
                 that object as a string",
                shortened(&other)
            ),
        )),
    }
}

/// A field's value, parsed if it is JSON in a string.
fn field(record: &Record, name: &str) -> Result<Value> {
    match record.fields.get(name) {
        None => Ok(Value::Null),
        // An empty cell of a table.
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Value::Null),
        Some(Value::String(text)) => serde_json::from_str(text).map_err(|e| {
            let message = format!("`{name}` is a string, but not one that holds JSON: {e}");
            wrong(record, message)
        }),
        Some(value) => Ok(value.clone()),
    }
}

fn shortened(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

fn wrong(record: &Record, message: String) -> DataError {
    DataError::Record {
        at: record.source.clone(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::records::{RecordPlace, RecordSource};

    fn variables(json: &str) -> Result<Variables> {
        Variables::of(&Record {
            fields: serde_json::from_str(json).unwrap(),
            source: RecordSource {
                file: Path::new("d.jsonl").into(),
                place: RecordPlace::Line(3),
            },
        })
    }

    #[test]
    fn fields_are_json_or_strings_of_it() {
        let given = variables(
            r#"{"tools": [{"name": "f"}], "chat_template_kwargs": {"enable_thinking": false}}"#,
        );
        let text = variables(
            r#"{"tools": "[{\"name\": \"f\"}]",
                "chat_template_kwargs": "{\"enable_thinking\": false}"}"#,
        );
        let given = given.unwrap();
        assert_eq!(given, text.unwrap());
        assert_eq!(given.tools.unwrap()[0]["name"], "f");
        assert_eq!(given.others["enable_thinking"], false);
        let absent = variables(r#"{"tools": null, "chat_template_kwargs": null}"#);
        assert_eq!(absent.unwrap(), Variables::default());
    }

    #[test]
    fn other_values_are_refused_with_place_and_field() {
        for (json, expected) in [
            (r#"{"tools": {"name": "f"}}"#, "a list of JSON schemas"),
            (r#"{"tools": ["f"]}"#, "`tools` is [\"f\"]"),
            (r#"{"tools": "f"}"#, "not one that holds JSON"),
            (r#"{"chat_template_kwargs": [1]}"#, "expected an object"),
            (
                r#"{"chat_template_kwargs": {"tokenize": true}}"#,
                "remove it",
            ),
        ] {
            let error = variables(json).unwrap_err().to_string();
            assert!(
                error.contains(expected) && error.contains("d.jsonl:3"),
                "{error}"
            );
        }
    }
}
