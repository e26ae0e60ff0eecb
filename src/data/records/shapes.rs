//! The shapes of records, and their conversion to the fields that the views read.
//!
//! - TRL: `messages`; `prompt` with `completion`, or with `chosen` and `rejected`; `text`. Kept as
//!   it is.
//! - ShareGPT: `conversations` of `{from, value}`, also `system`, `chosen`, `rejected`. Becomes
//!   `messages`, or `prompt` with two answers.
//! - Alpaca: `instruction`, `input`, `output`, also `system`, `history`, `chosen`, `rejected`.
//!   Becomes `messages`, `prompt` with two answers, or text (`alpaca`).
//!
//! A record of a shape that the task does not read is refused with the name of its shape and the
//! stages that read it (`refusal`).

mod alpaca;
mod pairs;
mod refusal;
mod sharegpt;

use std::borrow::Cow;

use serde_json::Value;

use super::Record;
use crate::data::error::{DataError, Result};

/// The task that a record is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordTask {
    /// Documents to pretrain on.
    Documents,
    /// Answers to learn from.
    Examples,
    /// Texts of the same shapes to score, whatever their labels.
    Texts,
    /// Pairs of a better and a worse answer, to score.
    Pairs,
    /// Pairs for losses on the log-probs of the answers.
    DirectPairs,
    /// Prompts to generate from.
    Prompts,
}

/// Style of prompts that could be a chat or plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Messages: the model has a chat template.
    Chat,
    /// Plain text.
    Plain,
}

/// A shape with all fields that the task needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordShape {
    Messages,
    ShareGpt,
    Completion,
    Alpaca,
    Text,
    Pair,
    ShareGptPair,
    AlpacaPair,
    Prompt,
    AlpacaPrompt,
}

/// Fields of a chat that its template reads besides the messages.
const TEMPLATE_FIELDS: [&str; 2] = ["tools", "chat_template_kwargs"];

impl RecordShape {
    /// The record's shape; the first in this order if it has several.
    fn of(record: &Record, task: RecordTask) -> Option<Self> {
        let has = |names: &[&str]| names.iter().all(|name| record.has(name));
        let rules: &[(&[&str], Self)] = match task {
            RecordTask::Documents => &[(&["text"], RecordShape::Text)],
            RecordTask::Examples | RecordTask::Texts => &[
                (&["messages"], RecordShape::Messages),
                (&["conversations"], RecordShape::ShareGpt),
                (&["prompt", "completion"], RecordShape::Completion),
                (&["instruction", "output"], RecordShape::Alpaca),
                (&["text"], RecordShape::Text),
            ],
            RecordTask::Pairs | RecordTask::DirectPairs => &[
                (&["prompt", "chosen", "rejected"], RecordShape::Pair),
                (
                    &["conversations", "chosen", "rejected"],
                    RecordShape::ShareGptPair,
                ),
                (
                    &["instruction", "chosen", "rejected"],
                    RecordShape::AlpacaPair,
                ),
                (&["chosen", "rejected"], RecordShape::Pair),
            ],
            RecordTask::Prompts => &[
                (&["prompt"], RecordShape::Prompt),
                (&["instruction"], RecordShape::AlpacaPrompt),
            ],
        };
        let found = rules.iter().find(|(names, _)| has(names));
        let shape = found.map(|(_, shape)| *shape)?;
        // A record with only one of `prompt` and `completion` is not a document.
        let halves = record.has("prompt") || record.has("completion");
        let whole = task == RecordTask::Documents || shape != RecordShape::Text || !halves;
        whole.then_some(shape)
    }

    /// The fields that a shape is read from.
    fn fields(self, task: RecordTask) -> &'static [&'static str] {
        match (self, task) {
            (RecordShape::Messages, _) => &["messages"],
            (RecordShape::ShareGpt, _) => &["conversations", "system"],
            (RecordShape::Completion, _) => &["prompt", "completion"],
            (RecordShape::Alpaca, _) => &["instruction", "input", "output", "system", "history"],
            (RecordShape::Text, _) => &["text"],
            (RecordShape::Pair, RecordTask::Pairs) => &["prompt", "chosen", "rejected", "margin"],
            (RecordShape::Pair, _) => &["prompt", "chosen", "rejected"],
            (RecordShape::ShareGptPair, RecordTask::Pairs) => {
                &["conversations", "system", "chosen", "rejected", "margin"]
            }
            (RecordShape::ShareGptPair, _) => &["conversations", "system", "chosen", "rejected"],
            (RecordShape::AlpacaPair, RecordTask::Pairs) => &[
                "instruction",
                "input",
                "system",
                "history",
                "chosen",
                "rejected",
                "margin",
            ],
            (RecordShape::AlpacaPair, _) => &[
                "instruction",
                "input",
                "system",
                "history",
                "chosen",
                "rejected",
            ],
            (RecordShape::Prompt, _) => &["prompt"],
            (RecordShape::AlpacaPrompt, _) => &["instruction", "input", "system", "history"],
        }
    }

    /// True if the record is rendered by a chat template.
    fn is_chat(self, record: &Record, style: Style) -> bool {
        let mut lists = self.fields(RecordTask::Pairs).iter();
        let list = |name: &&str| record.fields.get(*name).is_some_and(Value::is_array);
        match self {
            RecordShape::Alpaca | RecordShape::AlpacaPair | RecordShape::AlpacaPrompt => {
                style == Style::Chat
            }
            _ => lists.any(list),
        }
    }
}

impl Record {
    /// True if the record has the field and it is not null.
    pub fn has(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// The record converted to the fields that the task's view reads.
    ///
    /// # Errors
    /// If the task does not read the shape, or it cannot be converted. A record of no known shape
    /// passes; the view's error then names the missing field.
    pub fn shaped(&self, task: RecordTask, style: Style) -> Result<Cow<'_, Self>> {
        let Some(shape) = RecordShape::of(self, task) else {
            return match refusal::of(self, task) {
                Some(error) => Err(error),
                None => Ok(Cow::Borrowed(self)),
            };
        };
        refusal::check(self, task)?;
        let mut record = sharegpt::with_roles(self, shape.fields(task))?;
        drop_nulls(&mut record);
        match shape {
            RecordShape::Messages
            | RecordShape::Completion
            | RecordShape::Text
            | RecordShape::Prompt => {}
            RecordShape::ShareGpt => sharegpt::to_messages(record.to_mut(), "messages")?,
            RecordShape::ShareGptPair => sharegpt::to_pair(record.to_mut())?,
            RecordShape::Alpaca => alpaca::to_example(record.to_mut(), style)?,
            RecordShape::AlpacaPair => alpaca::to_pair(record.to_mut(), style)?,
            RecordShape::AlpacaPrompt => alpaca::to_prompt(record.to_mut(), style)?,
            RecordShape::Pair => pairs::find_prompt(&mut record, task),
        }
        Ok(record)
    }

    /// Fields that the task does not use. A prompt's other fields go to the rewards, except those
    /// of the template if the prompt is plain text.
    pub fn unused(&self, task: RecordTask, style: Style) -> Vec<&str> {
        let mut unused = self.unread(task, style);
        if task == RecordTask::Prompts {
            unused.retain(|name| TEMPLATE_FIELDS.contains(name));
        }
        unused
    }

    /// Fields that do not become tokens.
    pub fn unread(&self, task: RecordTask, style: Style) -> Vec<&str> {
        let Some(shape) = RecordShape::of(self, task) else {
            return Vec::new();
        };
        let read = |name: &str| match TEMPLATE_FIELDS.contains(&name) {
            true => shape.is_chat(self, style),
            false if shape == RecordShape::Pair && name == "prompt" => {
                !pairs::holds_prompt_twice(self)
            }
            false => shape.fields(task).contains(&name),
        };
        self.names().filter(|name| !read(name)).collect()
    }

    /// Names of the fields that are not null.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names = self.fields.keys().map(String::as_str);
        names.filter(|name| self.has(name))
    }

    /// An error about this record.
    fn wrong(&self, message: impl Into<String>) -> DataError {
        DataError::Record {
            at: self.source.clone(),
            message: message.into(),
        }
    }

    /// The text of a field; empty if the field is absent.
    fn text_or_empty(&self, name: &str) -> Result<String> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.wrong(format!(
                "field `{name}` is {}; expected a string",
                super::names::type_name(other)
            ))),
        }
    }
}

/// Fields whose presence decides the shape; Parquet and exports write absent ones as null.
const CHOOSING: [&str; 3] = ["messages", "prompt", "margin"];

fn drop_nulls(record: &mut Cow<'_, Record>) {
    for name in CHOOSING {
        if record.fields.get(name).is_some_and(Value::is_null) {
            record.to_mut().fields.shift_remove(name);
        }
    }
}

#[cfg(test)]
mod tests;
