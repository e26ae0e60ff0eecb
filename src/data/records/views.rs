//! Views of a record: a document, a prompt with its completion, a chat, a preference, a prompt.

use serde_json::{Map, Value};

use super::Record;
use super::names::{likely_name, missing_field, type_name};
use crate::data::error::{DataError, Result};

const STRING: &str = "a string";
const MESSAGES: &str = "a list of messages {\"role\": ..., \"content\": ...}";
const TURNS: &str = "a string, or a list of messages {\"role\": ..., \"content\": ...}";

/// One message of a chat. All its fields (`tool_calls`, `name`, ...) reach the template.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    fields: Map<String, Value>,
}

impl Message {
    /// A message with a role (`system`, `user`, `assistant`, ...) and its text.
    pub fn new(role: &str, content: &str) -> Self {
        let field = |name: &str, value: &str| (name.to_owned(), Value::String(value.to_owned()));
        Message {
            fields: Map::from_iter([field("role", role), field("content", content)]),
        }
    }

    /// All fields, as the template reads them.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Role of the speaker.
    pub fn role(&self) -> &str {
        self.fields
            .get("role")
            .and_then(Value::as_str)
            .unwrap_or("")
    }

    /// The text, if the content is one string.
    pub fn content(&self) -> Option<&str> {
        self.fields.get("content").and_then(Value::as_str)
    }
}

/// Plain text or a chat: the two forms that prompts and completions come in (TRL's standard and
/// conversational form).
#[derive(Debug, Clone, PartialEq)]
pub enum Turns {
    /// Plain text; no template is applied.
    Text(String),
    /// Messages, for the chat template.
    Messages(Vec<Message>),
}

impl Turns {
    fn kind(&self) -> &'static str {
        match self {
            Turns::Text(_) => "a string",
            Turns::Messages(_) => "a list of messages",
        }
    }
}

/// `prompt` + `completion`, both in the same form.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptCompletion {
    /// The prompt.
    pub prompt: Turns,
    /// The completion that is learned.
    pub completion: Turns,
}

/// `prompt` + `chosen` + `rejected`, all in the same form.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// The prompt of both answers. Without the field `prompt` (TRL's implicit form): empty text, or
    /// the messages with which both lists start.
    pub prompt: Turns,
    /// The better answer.
    pub chosen: Turns,
    /// The worse answer.
    pub rejected: Turns,
    /// Margin by which the chosen answer is better, if the record has one.
    pub margin: Option<f32>,
}

impl Record {
    /// The document in field `text`.
    pub fn text(&self) -> Result<&str> {
        let value = self.required("text", STRING)?;
        value
            .as_str()
            .ok_or_else(|| self.wrong_type("text", value, STRING))
    }

    /// The fields `prompt` and `completion`.
    pub fn prompt_completion(&self) -> Result<PromptCompletion> {
        let prompt = self.turns("prompt")?;
        let completion = self.turns("completion")?;
        self.same_form(("prompt", &prompt), ("completion", &completion))?;
        Ok(PromptCompletion { prompt, completion })
    }

    /// The chat in field `messages`.
    pub fn messages(&self) -> Result<Vec<Message>> {
        match self.required("messages", MESSAGES)? {
            Value::Array(items) => self.message_list("messages", items),
            other => Err(self.wrong_type("messages", other, MESSAGES)),
        }
    }

    /// The field `prompt`. The other fields are in [`Record::fields`].
    pub fn prompt(&self) -> Result<Turns> {
        self.turns("prompt")
    }

    /// The fields `chosen` and `rejected`, and optionally `prompt` and `margin`.
    pub fn preference(&self) -> Result<Preference> {
        let chosen = self.turns("chosen")?;
        let rejected = self.turns("rejected")?;
        self.same_form(("chosen", &chosen), ("rejected", &rejected))?;
        let margin = self.margin()?;
        if self.fields.contains_key("prompt") {
            let prompt = self.turns("prompt")?;
            self.same_form(("prompt", &prompt), ("chosen", &chosen))?;
            return Ok(Preference {
                prompt,
                chosen,
                rejected,
                margin,
            });
        }
        if self.renamed("prompt").is_some() {
            return Err(self.missing("prompt", TURNS)); // a misspelt prompt must not count as none
        }
        let (prompt, chosen, rejected) = implicit_prompt(chosen, rejected);
        Ok(Preference {
            prompt,
            chosen,
            rejected,
            margin,
        })
    }

    /// A list of token ids in `field`, for models without a tokenizer.
    pub fn token_ids(&self, field: &str) -> Result<Vec<u32>> {
        const IDS: &str = "a list of token ids (whole numbers from 0)";
        let value = self.required(field, IDS)?;
        let items = value
            .as_array()
            .ok_or_else(|| self.wrong_type(field, value, IDS))?;
        let id = |(i, item): (usize, &Value)| {
            let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.wrong_type(&format!("{field}[{i}]"), item, IDS))
        };
        items.iter().enumerate().map(id).collect()
    }

    fn margin(&self) -> Result<Option<f32>> {
        match self.fields.get("margin") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let number = value.as_f64().map(|m| m as f32).filter(|m| m.is_finite());
                number
                    .map(Some)
                    .ok_or_else(|| self.wrong_type("margin", value, "a number below 3.4e38"))
            }
        }
    }

    fn turns(&self, field: &str) -> Result<Turns> {
        match self.required(field, TURNS)? {
            Value::String(text) => Ok(Turns::Text(text.clone())),
            Value::Array(items) => Ok(Turns::Messages(self.message_list(field, items)?)),
            other => Err(self.wrong_type(field, other, TURNS)),
        }
    }

    fn message_list(&self, field: &str, items: &[Value]) -> Result<Vec<Message>> {
        if items.is_empty() {
            let message =
                format!("field `{field}` is an empty list; expected at least one message");
            return Err(DataError::Record {
                at: self.source.clone(),
                message,
            });
        }
        items
            .iter()
            .enumerate()
            .map(|(i, item)| self.message(&format!("{field}[{i}]"), item))
            .collect()
    }

    fn message(&self, path: &str, item: &Value) -> Result<Message> {
        const OBJECT: &str = "an object {\"role\": ..., \"content\": ...}";
        let fields = item
            .as_object()
            .ok_or_else(|| self.wrong_type(path, item, OBJECT))?;
        match fields.get("role") {
            Some(Value::String(_)) => {}
            Some(other) => return Err(self.wrong_type(&format!("{path}.role"), other, STRING)),
            None => return Err(missing_field(&self.source, fields, path, "role", STRING)),
        }
        const CONTENT: &str = "a string (or a list of parts)";
        let calls = fields
            .get("tool_calls")
            .is_some_and(|calls| !calls.is_null());
        match fields.get("content") {
            Some(Value::String(_) | Value::Array(_)) => {}
            // Tool calls have no text.
            None | Some(Value::Null) if calls => {}
            Some(other) => return Err(self.wrong_type(&format!("{path}.content"), other, CONTENT)),
            None => {
                return Err(missing_field(
                    &self.source,
                    fields,
                    path,
                    "content",
                    CONTENT,
                ));
            }
        }
        Ok(Message {
            fields: fields.clone(),
        })
    }

    fn required(&self, field: &str, expected: &'static str) -> Result<&Value> {
        self.fields
            .get(field)
            .ok_or_else(|| self.missing(field, expected))
    }

    fn missing(&self, field: &str, expected: &'static str) -> DataError {
        missing_field(&self.source, &self.fields, "", field, expected)
    }

    fn renamed(&self, field: &str) -> Option<&str> {
        likely_name(&self.fields, field)
    }

    fn wrong_type(&self, field: &str, value: &Value, expected: &'static str) -> DataError {
        let (at, field) = (self.source.clone(), field.to_owned());
        DataError::FieldType {
            at,
            field,
            found: type_name(value),
            expected,
        }
    }

    fn same_form(&self, a: (&str, &Turns), b: (&str, &Turns)) -> Result<()> {
        if a.1.kind() == b.1.kind() {
            return Ok(());
        }
        let message = format!(
            "field `{}` is {} and `{}` is {}; give both in the same form",
            a.0,
            a.1.kind(),
            b.0,
            b.1.kind()
        );
        Err(DataError::Record {
            at: self.source.clone(),
            message,
        })
    }
}

/// Splits off the common first messages of both lists; each keeps at least its last one.
fn implicit_prompt(chosen: Turns, rejected: Turns) -> (Turns, Turns, Turns) {
    match (chosen, rejected) {
        (Turns::Messages(mut chosen), Turns::Messages(mut rejected)) => {
            let most = chosen.len().min(rejected.len()) - 1;
            let shared = (0..most).take_while(|&i| chosen[i] == rejected[i]).count();
            let prompt = chosen.drain(..shared).collect();
            rejected.drain(..shared);
            (
                Turns::Messages(prompt),
                Turns::Messages(chosen),
                Turns::Messages(rejected),
            )
        }
        (chosen, rejected) => (Turns::Text(String::new()), chosen, rejected),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RecordPlace, RecordSource};
    use super::*;
    use std::path::Path;
    use std::sync::Arc;

    fn record(json: &str) -> Record {
        let Value::Object(fields) = serde_json::from_str(json).unwrap() else {
            panic!("not an object")
        };
        Record {
            fields,
            source: RecordSource {
                file: Arc::from(Path::new("d.jsonl")),
                place: RecordPlace::Line(7),
            },
        }
    }

    /// The error's text holds every part.
    fn says<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
        let text = result.unwrap_err().to_string();
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }

    #[test]
    fn documents_and_completions() {
        assert_eq!(record(r#"{"text": "a"}"#).text().unwrap(), "a");
        let pc = record(r#"{"prompt": "a", "completion": " b", "id": 3}"#)
            .prompt_completion()
            .unwrap();
        assert_eq!(pc.completion, Turns::Text(" b".into()));
    }

    #[test]
    fn aliases_and_misspellings_are_pointed_out() {
        let pc = |json| record(json).prompt_completion();
        says(
            pc(r#"{"prompt": "a", "response": "b"}"#),
            &[
                "d.jsonl:7",
                "missing field `completion`",
                "rename `response` to `completion`",
            ],
        );
        says(
            pc(r#"{"promt": "a", "completion": "b"}"#),
            &["rename `promt` to `prompt`"],
        );
        says(
            pc(r#"{"prompt": "a", "x": "b"}"#),
            &["the record has `prompt`, `x`"],
        );
        says(
            pc(r#"{"prompt": "a", "completion": 3}"#),
            &["`completion` is a number", "expected a string"],
        );
        says(
            pc(r#"{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}"#),
            &["`prompt` is a string", "list of messages", "same form"],
        );
    }

    #[test]
    fn messages_are_checked_one_by_one() {
        let m = |json| record(json).messages();
        let ok = m(r#"{"messages": [{"role": "user", "content": "hi"},
                                    {"role": "assistant", "content": null, "tool_calls": []}]}"#)
        .unwrap();
        assert_eq!((ok[0].role(), ok[0].content()), ("user", Some("hi")));
        says(
            m(r#"{"messages": [{"role": "assistant", "content": null, "tool_calls": null}]}"#),
            &["`messages[0].content` is null"],
        );
        says(
            m(r#"{"messages": [{"role": "assistant", "tool_calls": null}]}"#),
            &["missing field `messages[0].content`"],
        );
        says(m(r#"{"messages": []}"#), &["`messages` is an empty list"]);
        says(m(r#"{"messages": "hi"}"#), &["`messages` is a string"]);
        says(
            m(r#"{"messages": [{"speaker": "human", "content": "hi"}]}"#),
            &["`messages[0].role`", "rename `speaker` to `role`"],
        );
        says(
            m(r#"{"messages": [{"role": "user", "content": "a"},
                                 {"role": "user", "content": 1}]}"#),
            &["`messages[1].content` is a number"],
        );
        says(
            m(r#"{"dialogue": []}"#),
            &["rename `dialogue` to `messages`, or set columns = { messages = \"dialogue\" }"],
        );
    }

    #[test]
    fn preferences_with_and_without_prompt() {
        let p = |json| record(json).preference();
        let explicit =
            p(r#"{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1.5}"#).unwrap();
        assert_eq!(
            (explicit.prompt, explicit.margin),
            (Turns::Text("a".into()), Some(1.5))
        );
        for pair in [
            r#"{"chosen": "b", "rejected": "c", "margin": 1e39}"#,
            r#"{"chosen": "b", "rejected": "c", "margin": "1"}"#,
        ] {
            says(
                p(pair),
                &["`margin` is a", "expected a number below 3.4e38"],
            );
        }
        let implicit = p(r#"{"chosen": "a b", "rejected": "a c"}"#).unwrap();
        assert_eq!(
            (implicit.prompt, implicit.margin),
            (Turns::Text("".into()), None)
        );
        let chat = p(
            r#"{"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
                "rejected": [{"role": "user", "content": "q"},
                             {"role": "assistant", "content": "c"}]}"#,
        )
        .unwrap();
        assert_eq!(
            chat.prompt,
            Turns::Messages(vec![Message::new("user", "q")])
        );
        assert_eq!(
            chat.rejected,
            Turns::Messages(vec![Message::new("assistant", "c")])
        );
        says(
            p(r#"{"question": "q", "chosen": "b", "rejected": "c"}"#),
            &["rename `question` to `prompt`"],
        );
        says(
            p(r#"{"chosen": "b", "rejected": "c", "margin": "2"}"#),
            &["`margin` is a string"],
        );
    }

    #[test]
    fn token_ids_are_whole_numbers() {
        assert_eq!(
            record(r#"{"ids": [1, 2]}"#).token_ids("ids").unwrap(),
            [1, 2]
        );
        says(
            record(r#"{"ids": [1, -2]}"#).token_ids("ids"),
            &["`ids[1]` is a number", "from 0"],
        );
    }
}
