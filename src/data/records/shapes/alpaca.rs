//! Alpaca: `instruction`, optionally `input`, and `output`.
//!
//! For a model with a chat template the record is a conversation, as in LLaMA-Factory: the
//! instruction and, on the next line, its input are the user's message; `system` and `history` come
//! before it. For a model without one it is text with the prompts of Stanford's Alpaca (Taori et
//! al. 2023, `train.py`).

use serde_json::{Value, json};

use super::super::Record;
use super::Style;
use crate::data::error::Result;

const WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that \
                          provides further context. Write a response that appropriately \
                          completes the request.\n\n\
                          ### Instruction:\n";
const WITHOUT_INPUT: &str = "Below is an instruction that describes a task. \
                             Write a response that appropriately completes the request.\n\n\
                             ### Instruction:\n";

/// `prompt` and `completion` in place of the record's own fields.
pub(super) fn to_example(record: &mut Record, style: Style) -> Result<()> {
    let output = record.text_or_empty("output")?;
    to_prompt(record, style)?;
    record
        .fields
        .insert("completion".to_owned(), answer(output, style));
    Ok(())
}

/// `prompt` beside `chosen` and `rejected`, all in one form.
pub(super) fn to_pair(record: &mut Record, style: Style) -> Result<()> {
    to_prompt(record, style)?;
    for name in ["chosen", "rejected"] {
        let Some(Value::String(text)) = record.fields.get(name) else {
            continue;
        };
        let answer = answer(text.clone(), style);
        record.fields.insert(name.to_owned(), answer);
    }
    Ok(())
}

/// Adds `prompt` to the record's own fields.
pub(super) fn to_prompt(record: &mut Record, style: Style) -> Result<()> {
    let [instruction, input, system] =
        ["instruction", "input", "system"].map(|name| record.text_or_empty(name));
    let (instruction, input, system) = (instruction?, input?, system?);
    let history = history(record)?;
    let prompt = match style {
        Style::Chat => {
            let user = match input.is_empty() {
                true => instruction,
                false => format!("{instruction}\n{input}"),
            };
            let system = (!system.is_empty()).then(|| json!({"role": "system", "content": system}));
            let user = json!({"role": "user", "content": user});
            system.into_iter().chain(history).chain([user]).collect()
        }
        Style::Plain if !system.is_empty() || !history.is_empty() => {
            return Err(record.wrong(
                "the record has a `system` or a `history`, which only a chat template can render, \
                 and the tokenizer has none; add `chat_template` to its tokenizer_config.json (set \
                 tokenizer.chat_template if the run trains it), or give the record as `prompt` and \
                 `completion`",
            ));
        }
        Style::Plain => Value::from(plain(&instruction, &input)),
    };
    record.fields.insert("prompt".to_owned(), prompt);
    Ok(())
}

fn plain(instruction: &str, input: &str) -> String {
    match input.is_empty() {
        true => format!("{WITHOUT_INPUT}{instruction}\n\n### Response:"),
        false => {
            format!("{WITH_INPUT}{instruction}\n\n### Input:\n{input}\n\n### Response:")
        }
    }
}

fn answer(text: String, style: Style) -> Value {
    match style {
        Style::Chat => json!([{"role": "assistant", "content": text}]),
        Style::Plain => text.into(),
    }
}

/// The messages of `history`, a list of `[question, answer]`.
fn history(record: &Record) -> Result<Vec<Value>> {
    let wrong =
        || record.wrong("field `history` must be a list of pairs [\"question\", \"answer\"]");
    let turns = match record.fields.get("history") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(turns)) => turns,
        Some(_) => return Err(wrong()),
    };
    let mut messages = Vec::new();
    for turn in turns {
        let [Value::String(user), Value::String(assistant)] =
            turn.as_array().map(Vec::as_slice).unwrap_or_default()
        else {
            return Err(wrong());
        };
        messages.push(json!({"role": "user", "content": user}));
        messages.push(json!({"role": "assistant", "content": assistant}));
    }
    Ok(messages)
}
