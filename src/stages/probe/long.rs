//! Long records, made of the words of a stage's own records.

use serde_json::{Value, json};

use crate::data::records::Record;

/// A preference pair whose two answers are `text` and one more word.
pub fn pair(text: &str) -> Value {
    json!({"prompt": "a", "chosen": format!("{text} a"), "rejected": format!("a {text}")})
}

/// `count` words of the records' text, repeated if there are fewer.
pub fn words<'r>(records: impl Iterator<Item = &'r Record>, count: usize) -> String {
    let mut found = Vec::new();
    for record in records {
        record
            .fields
            .values()
            .for_each(|value| collect(value, &mut found));
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

fn collect<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => found.extend(text.split_whitespace()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(fields) => fields.values().for_each(|value| collect(value, found)),
        _ => {}
    }
}
