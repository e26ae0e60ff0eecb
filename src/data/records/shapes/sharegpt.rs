//! ShareGPT: `conversations` of `{"from": "human", "value": …}`, and answers in that form.
//!
//! Speakers become roles as in LLaMA-Factory and axolotl. A `function_call` becomes a message with
//! `tool_calls`.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::super::Record;
use super::super::names::shown;
use crate::data::error::Result;

/// Speakers and their roles.
const ROLES: [(&str, &str); 14] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
    ("function_call", "assistant"),
    ("function-call", "assistant"),
];

/// The record with roles and contents in place of speakers and values, in each list among `fields`.
/// An answer that is one message becomes a list.
pub(super) fn with_roles<'r>(record: &'r Record, fields: &[&str]) -> Result<Cow<'r, Record>> {
    let mut found = Cow::Borrowed(record);
    for &field in fields {
        let converted = match record.fields.get(field) {
            Some(Value::Array(items)) if items.iter().any(is_sharegpt) => {
                let items = items.iter().enumerate();
                let messages = items.map(|(i, item)| message(record, field, i, item));
                messages.collect::<Result<Vec<Value>>>()?
            }
            Some(item) if is_sharegpt(item) => vec![message(record, field, 0, item)?],
            Some(Value::Object(item)) if item.contains_key("role") => vec![item.clone().into()],
            _ => continue,
        };
        found
            .to_mut()
            .fields
            .insert(field.to_owned(), converted.into());
    }
    Ok(found)
}

fn is_sharegpt(item: &Value) -> bool {
    item.get("from").is_some() && item.get("role").is_none()
}

fn message(record: &Record, field: &str, index: usize, item: &Value) -> Result<Value> {
    let Some(fields) = item.as_object().filter(|_| is_sharegpt(item)) else {
        return Ok(item.clone()); // its own role, or an error that the view names
    };
    let path = format!("{field}[{index}]");
    let speaker = fields["from"].as_str().unwrap_or_default();
    let Some((_, role)) = ROLES.iter().find(|(from, _)| *from == speaker) else {
        let known: Vec<&str> = ROLES.iter().map(|(from, _)| *from).collect();
        return Err(record.wrong(format!(
            "`{path}.from` is {}; known speakers are {}",
            shown(&fields["from"]),
            known.join(", ")
        )));
    };
    let Some(Value::String(text)) = fields.get("value") else {
        return Err(record.wrong(format!(
            "`{path}` has no text in `value`; expected {{\"from\": …, \"value\": \"…\"}}"
        )));
    };
    let mut message = Map::from_iter([("role".to_owned(), Value::from(*role))]);
    if speaker.starts_with("function") && *role == "assistant" {
        message.insert("tool_calls".to_owned(), calls(record, &path, text)?);
    } else {
        message.insert("content".to_owned(), text.clone().into());
    }
    let others = fields
        .iter()
        .filter(|(name, _)| *name != "from" && *name != "value");
    message.extend(others.map(|(name, value)| (name.clone(), value.clone())));
    Ok(message.into())
}

/// The calls in the text of a `function_call`: one `{"name", "arguments"}`, or a list of them.
fn calls(record: &Record, path: &str, text: &str) -> Result<Value> {
    let calls = match serde_json::from_str(text) {
        Ok(Value::Array(calls)) => calls,
        Ok(call @ Value::Object(_)) => vec![call],
        _ => Vec::new(),
    };
    let named = |call: &Value| call.get("name").is_some_and(Value::is_string);
    if calls.is_empty() || !calls.iter().all(named) {
        return Err(record.wrong(format!(
            "`{path}.value` of a function_call must be JSON such as {{\"name\": \"search\", \
             \"arguments\": {{…}}}}"
        )));
    }
    let calls = calls.into_iter();
    Ok(calls
        .map(|call| json!({"type": "function", "function": call}))
        .collect())
}

/// Moves `conversations` to the field `to`, with the record's `system` before it.
pub(super) fn to_messages(record: &mut Record, to: &str) -> Result<()> {
    let system = record.text_or_empty("system")?;
    record.fields.shift_remove("system");
    let Some(Value::Array(mut messages)) = record.fields.shift_remove("conversations") else {
        return Err(record.wrong(
            "field `conversations` is no list; expected a list of {\"from\": …, \"value\": \"…\"}",
        ));
    };
    let has_own = messages.first().is_some_and(|m| m["role"] == "system");
    if !system.is_empty() && has_own && messages[0]["content"] != *system {
        return Err(record
            .wrong("`system` and the system message of `conversations` differ; keep one of them"));
    }
    if !system.is_empty() && !has_own {
        messages.insert(0, json!({"role": "system", "content": system}));
    }
    record.fields.insert(to.to_owned(), messages.into());
    Ok(())
}

/// `conversations` becomes the prompt of `chosen` and `rejected`, which may be text or messages.
pub(super) fn to_pair(record: &mut Record) -> Result<()> {
    to_messages(record, "prompt")?;
    for name in ["chosen", "rejected"] {
        if let Some(Value::String(text)) = record.fields.get(name) {
            let answer = json!([{"role": "assistant", "content": text}]);
            record.fields.insert(name.to_owned(), answer);
        }
    }
    Ok(())
}
