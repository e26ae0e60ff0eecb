//! Refuses records of a shape that the task does not read, with the stages that read it and the
//! fields that the task needs.

use serde_json::Value;

use super::super::Record;
use super::super::names::{likely_name, listed, missing_field};
use super::RecordTask;
use crate::config::{Learn, Stage};
use crate::data::error::{DataError, Result};

/// A shape recognised by its fields: its name, and the stages that read it.
struct Known {
    fields: &'static [&'static str],
    words: &'static str,
    readers: Readers,
}

/// The readers of a shape.
#[derive(Clone, Copy)]
enum Readers {
    /// The stages that learn from pairs.
    Pairs,
    /// A sentence that names the readers.
    Words(&'static str),
}

impl Readers {
    fn in_words(self) -> String {
        match self {
            Self::Pairs => {
                let stages = Stage::ALL.into_iter();
                let stages = stages.filter(|stage| stage.sequences() == Some(2));
                let stages: Vec<String> = stages.map(|stage| format!("[{stage}]")).collect();
                format!("{} read pairs", stages.join(", "))
            }
            Self::Words(words) => words.to_owned(),
        }
    }
}

/// The shapes, those with the most specific fields first.
const KNOWN: [Known; 9] = [
    Known {
        fields: &["chosen", "rejected"],
        words: "a pair (`chosen`, `rejected`)",
        readers: Readers::Pairs,
    },
    Known {
        fields: &["messages"],
        words: "a chat (`messages`)",
        readers: Readers::Words("[sft] reads chats"),
    },
    Known {
        fields: &["conversations"],
        words: "a chat (`conversations`)",
        readers: Readers::Words("[sft] reads chats"),
    },
    Known {
        fields: &["instruction", "output"],
        words: "an instruction with its answer (`instruction`, `output`)",
        readers: Readers::Words("[sft] reads these"),
    },
    Known {
        fields: &["prompt", "completion"],
        words: "a prompt with its completion (`prompt`, `completion`)",
        readers: Readers::Words("[sft] reads these"),
    },
    Known {
        fields: &["text"],
        words: "a document (`text`)",
        readers: Readers::Words("[pretrain] and [sft] read documents"),
    },
    Known {
        fields: &["prompt"],
        words: "a prompt alone (`prompt`)",
        readers: Readers::Words("[ppo] reads prompts"),
    },
    Known {
        fields: &["prompt_ids"],
        words: "token ids (`prompt_ids`)",
        readers: Readers::Words("`collimate generate` reads them"),
    },
    Known {
        fields: &["ids"],
        words: "token ids (`ids`)",
        readers: Readers::Words("`collimate score` reads them"),
    },
];

/// The fields that the task needs, in words.
fn needs(task: RecordTask) -> &'static str {
    match task {
        RecordTask::Documents => "`text`",
        RecordTask::Examples | RecordTask::Texts => {
            "`messages` or `conversations`, `prompt` and `completion`, `instruction` and `output`, \
             or `text`"
        }
        RecordTask::Pairs | RecordTask::DirectPairs => {
            "`chosen` and `rejected`, with their `prompt` beside them or at the start of both"
        }
        RecordTask::Prompts => {
            "`prompt` (a chat that ends with the user's message can be one: columns = { prompt = \
             \"messages\" })"
        }
    }
}

/// Fields that the task may be missing, in order of precedence.
fn wanted(task: RecordTask) -> &'static [&'static str] {
    match task {
        RecordTask::Documents => &["text"],
        RecordTask::Examples | RecordTask::Texts => &["completion", "prompt", "messages", "text"],
        RecordTask::Pairs | RecordTask::DirectPairs => &["chosen", "rejected"],
        RecordTask::Prompts => &["prompt"],
    }
}

/// The error of a record that has none of the task's shapes; `None` if a field is similar to the
/// missing one, which the view's error names.
pub(super) fn of(record: &Record, task: RecordTask) -> Option<DataError> {
    let unpaired = ["prompt", "completion", "label"].iter();
    let unpaired = unpaired.filter(|name| record.has(name)).count() == 3;
    if unpaired && matches!(task, RecordTask::Pairs | RecordTask::DirectPairs) {
        return Some(record.wrong(format!(
            "this is an unpaired preference (`prompt`, `completion`, `label`), as KTO takes, which \
             no stage here trains on; needed are {}",
            needs(task)
        )));
    }
    if let Some(missing) = missing(record, task) {
        return match missing {
            Missing::Field(name) => Some(missing_field(
                &record.source,
                &record.fields,
                "",
                name,
                expected(name),
            )),
            Missing::ToTheView => None,
        };
    }
    let has_all = |known: &&Known| known.fields.iter().all(|name| record.has(name));
    match KNOWN.iter().find(has_all) {
        Some(Known { words, readers, .. }) => Some(record.wrong(format!(
            "this is {words}; {}; needed here: {}",
            readers.in_words(),
            needs(task)
        ))),
        None => unknown(record, task),
    }
}

/// The error of a record to fine-tune on that has none of the known fields. Tasks with one shape of
/// records name the missing field instead.
fn unknown(record: &Record, task: RecordTask) -> Option<DataError> {
    let names: Vec<&str> = record.names().collect();
    let present = match names.is_empty() {
        true => "no fields".to_owned(),
        false => listed(&names),
    };
    (task == RecordTask::Examples).then(|| {
        record.wrong(format!(
            "needs {}; this record has {present}. For plain text use [pretrain]",
            needs(task)
        ))
    })
}

/// A field that is missing from a record of the task's shape.
enum Missing {
    Field(&'static str),
    /// The view's error names the field.
    ToTheView,
}

/// The missing fields, if the record has some of the fields, or one of them under another name.
fn missing(record: &Record, task: RecordTask) -> Option<Missing> {
    let has = |name: &str| record.has(name);
    match task {
        RecordTask::Pairs | RecordTask::DirectPairs if has("chosen") || has("rejected") => {
            return Some(Missing::ToTheView);
        }
        RecordTask::Examples | RecordTask::Texts if has("instruction") => {
            return Some(Missing::Field("output"));
        }
        RecordTask::Examples | RecordTask::Texts if has("output") && !has("prompt") => {
            return Some(Missing::Field("instruction"));
        }
        // A record with `prompt` and `text` lacks the completion.
        RecordTask::Examples | RecordTask::Texts
            if has("completion") || (has("prompt") && has("text")) =>
        {
            return Some(Missing::ToTheView);
        }
        _ => {}
    }
    let absent = |name: &&&str| !has(name);
    let likely = |name: &&&str| likely_name(&record.fields, name).is_some();
    let name = wanted(task).iter().filter(absent).find(likely)?;
    match (task, *name) {
        (RecordTask::Examples | RecordTask::Texts, "messages" | "text") => {
            Some(Missing::Field(name))
        }
        _ => Some(Missing::ToTheView),
    }
}

/// The type of a field, in words.
fn expected(name: &str) -> &'static str {
    match name {
        "messages" => "a list of messages {\"role\": ..., \"content\": ...}",
        _ => "a string",
    }
}

/// Refuses a record whose labels forbid learning from it.
pub(super) fn check(record: &Record, task: RecordTask) -> Result<()> {
    if task != RecordTask::Examples {
        return Ok(());
    }
    let label = record.fields.get("label");
    if label == Some(&Value::Bool(false)) && record.has("prompt") && record.has("completion") {
        return Err(record.wrong(
            "`label` is false: this is the worse answer of an unpaired preference, as KTO takes, \
             and [sft] would learn it; keep the records whose label is true",
        ));
    }
    Ok(())
}

impl Record {
    /// Refuses a chat with an answer of weight 0 that would be learned. The record is already
    /// converted.
    ///
    /// # Errors
    /// If there is such an answer, with the way to leave it out.
    pub fn check_weights(&self, learn: Learn) -> Result<()> {
        let lists = ["messages", "completion"].map(|name| self.fields.get(name));
        let messages = lists.into_iter().flatten().find_map(Value::as_array);
        let answers = messages.into_iter().flatten().enumerate();
        let answers = answers.filter(|(_, message)| message["role"] == "assistant");
        let answers: Vec<(usize, bool)> = answers
            .map(|(i, message)| (i, is_unlearned(message)))
            .collect();
        match (answers.last(), learn) {
            (Some((i, true)), _) => Err(self.wrong(format!(
                "message {i} has weight 0, but the last answer of a chat is always learned; end \
                 the chat before it, or leave the record out"
            ))),
            (_, Learn::Last) => Ok(()),
            (_, Learn::All) => match answers.iter().find(|(_, unlearned)| *unlearned) {
                Some((i, _)) => Err(self.wrong(format!(
                    "message {i} has weight 0, but every answer of a chat is learned here; to \
                     learn the last one alone, set sft.learn = \"last\""
                ))),
                None => Ok(()),
            },
        }
    }
}

fn is_unlearned(message: &Value) -> bool {
    message["weight"].as_f64() == Some(0.0)
}
