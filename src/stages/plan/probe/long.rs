//! Records as long as one asks for, of the words that a stage's own records have.

use serde_json::{Value, json};

use crate::data::records::Record;

/// A pair of two answers of that text, and a word more each.
pub fn pair(text: &str) -> Value {
    json!({"prompt": "a", "chosen": format!("{text} a"), "rejected": format!("a {text}")})
}

/// So many words of what the records say, over and over.
pub fn words<'r>(records: impl Iterator<Item = &'r Record>, count: usize) -> String {
    let mut found = Vec::new();
    for record in records {
        record
            .fields
            .values()
            .for_each(|value| say(value, &mut found));
        if found.len() >= count {
            break;
        }
    }
    if found.is_empty() {
        found.push("a");
    }
    let words: Vec<&str> = found.into_iter().cycle().take(count).collect();
    words.join(" ")
}

fn say<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => found.extend(text.split_whitespace()),
        Value::Array(items) => items.iter().for_each(|item| say(item, found)),
        Value::Object(fields) => fields.values().for_each(|value| say(value, found)),
        _ => {}
    }
}
