//! Chat templates, rendered as transformers renders them, and cut into what is given and what is
//! answered.
//!
//! The environment is that of `transformers.utils.chat_template_utils`: Jinja2 with `trim_blocks`,
//! `lstrip_blocks` and loop controls; `raise_exception`, `strftime_now` and a `tojson` without HTML
//! escapes; `messages`, `tools` and `documents` (both none), `add_generation_prompt` and the
//! special tokens as variables. Values print as Python prints them ([`python`]). `{% generation %}`
//! blocks are read as plain blocks: the answers are found by [`ChatTemplate::spans`] in every
//! template, marked or not.
//!
//! A template may come from anybody; [`limits`] bounds what it may take.
//!
//! Left out: tools, documents, and local time (`strftime_now` is UTC, so that a machine's zone
//! changes nothing).

mod limits;
mod python;

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, context};
use serde_json::{Map, Value as Json};

use super::error::{DataError, Result};
use super::records::Message;
use limits::Bounded;

const NAME: &str = "chat_template";

/// Whether a rendering ends with the opening of an assistant turn (`add_generation_prompt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// The conversation is open: the assistant speaks next.
    Add,
    /// The conversation as it stands.
    Omit,
}

/// A piece of a rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span {
    /// Text that the model is given: headers, and turns of others.
    Given(String),
    /// Text that the model answers: the turn's content with whatever closes it.
    Answer(String),
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Bounded,
    /// Where the template stands, for messages; empty, or ending in `: `.
    place: String,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles `source`. `special_tokens` maps variables (`bos_token`, `eos_token`, ...) to their
    /// text.
    ///
    /// # Errors
    /// A template that is not valid Jinja, with its line.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(explain)?,
        );
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(|out, state, value| {
            limits::printable(state, value)?;
            out.write_str(&python::str(value)?).map_err(Error::from)
        });
        environment.add_filter("tojson", to_json);
        environment.add_filter("string", |state: &State, value: &Value| {
            limits::printable(state, value)?;
            python::str(value)
        });
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        let mut environment = Bounded::new(environment);
        environment
            .add_template(NAME, &plain_generation_blocks(source))
            .map_err(explain)?;
        Ok(ChatTemplate {
            environment,
            place: String::new(),
            special_tokens,
        })
    }

    /// The same with its file's name in errors.
    pub fn at(self, file: &str) -> Self {
        Self {
            place: format!("{file}: "),
            ..self
        }
    }

    /// Renders a conversation as `tokenizer.apply_chat_template(messages, tokenize=False)` does.
    ///
    /// # Errors
    /// What the template itself refuses (`raise_exception`), or an operation on a value it does not
    /// expect.
    pub fn render(&self, messages: &[Message], generation: GenerationPrompt) -> Result<String> {
        let variables = context! {
            messages => Serde(messages.iter().map(with_reasoning_names).collect::<Vec<_>>()),
            tools => (),
            documents => (),
            add_generation_prompt => generation == GenerationPrompt::Add,
            ..Value::from(Serde(&self.special_tokens))
        };
        let rendered = self.environment.render(NAME, variables);
        rendered.map_err(|error| explain(error).in_template(&self.place))
    }

    /// Renders a conversation in spans; joined they are [`ChatTemplate::render`] of the whole.
    /// Assistant turns from message `first_answer` on are answers, all else is given.
    ///
    /// An answer is what turn i adds to the rendering of the turns before it with the generation
    /// prompt.
    ///
    /// # Errors
    /// A template that renders earlier turns otherwise once later ones are there (some drop the
    /// reasoning of earlier turns): then no text is the one that the model saw and answered.
    pub fn spans(&self, messages: &[Message], first_answer: usize) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        let mut done = String::new();
        for (i, _) in messages
            .iter()
            .enumerate()
            .skip(first_answer)
            .filter(|(_, m)| m.role() == "assistant")
        {
            let before = self.render(&messages[..i], GenerationPrompt::Add)?;
            let after = self.render(&messages[..=i], GenerationPrompt::Omit)?;
            push(
                &mut spans,
                Span::Given(added(&done, &before, i)?.to_owned()),
            );
            push(
                &mut spans,
                Span::Answer(added(&before, &after, i)?.to_owned()),
            );
            done = after;
        }
        let whole = self.render(messages, GenerationPrompt::Omit)?;
        push(
            &mut spans,
            Span::Given(added(&done, &whole, messages.len())?.to_owned()),
        );
        Ok(spans)
    }
}

/// The reasoning of a message, kept under one of three names, also under the two that templates
/// read.
fn with_reasoning_names(message: &Message) -> Map<String, Json> {
    let names = ["reasoning_content", "thinking", "reasoning"];
    let field = |name: &&str| message.fields().get(*name).filter(|value| !value.is_null());
    let Some(reasoning) = names.iter().find_map(field) else {
        return message.fields().clone();
    };
    let mut fields = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
    fields.extend(message.fields().clone());
    fields.insert("reasoning_content".to_owned(), reasoning.clone());
    fields
}

fn push(spans: &mut Vec<Span>, span: Span) {
    let (Span::Given(text) | Span::Answer(text)) = &span;
    if !text.is_empty() {
        spans.push(span);
    }
}

/// What `longer` adds to `shorter`.
fn added<'a>(shorter: &str, longer: &'a str, turn: usize) -> Result<&'a str> {
    longer.strip_prefix(shorter).ok_or_else(|| {
        let same = shorter.chars().zip(longer.chars()).take_while(|(a, b)| a == b).count();
        DataError::Template(format!(
            "the rendering up to messages[{turn}] does not start with the rendering of the \
             messages before it (they part \
             at character {same}), so answers cannot be told from what is given; keep one answer a record \
             (`prompt` + `completion`) or use a template that does not rewrite earlier turns"
        ))
    })
}

/// Replaces the tags `generation`/`endgeneration`, an extension of transformers, by a block that
/// does nothing.
fn plain_generation_blocks(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let tag = &rest[start + 2..start + length];
        let name = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        plain.push_str(&rest[..start + 2]);
        match name {
            "generation" => plain.push_str(&tag.replace(name, "if true")),
            "endgeneration" => plain.push_str(&tag.replace(name, "endif")),
            _ => plain.push_str(tag),
        }
        rest = &rest[start + length..];
    }
    plain + rest
}

/// `tojson(value, ensure_ascii=false, indent=none, separators=none, sort_keys=false)`, as transformers
/// defines it.
fn to_json(state: &State, value: &Value, kwargs: Kwargs) -> std::result::Result<String, Error> {
    let style = python::JsonStyle {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: kwargs.get::<Option<usize>>("indent")?,
        separators: kwargs.get::<Option<Vec<String>>>("separators")?,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    limits::check_style(&style)?;
    limits::printable(state, value)?;
    Ok(python::dumps(&json(value)?, &style))
}

fn json(value: &Value) -> std::result::Result<Json, Error> {
    serde_json::to_value(value).map_err(|e| {
        Error::new(ErrorKind::BadSerialization, "value has no JSON form").with_source(e)
    })
}

fn raise_exception(message: String) -> std::result::Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> std::result::Result<String, Error> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now).map_err(|e| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now({format:?}): {e}"),
        )
    })
}

fn explain(error: Error) -> DataError {
    let place = error
        .line()
        .map_or(String::new(), |line| format!("line {line}: "));
    DataError::Template(match error.detail() {
        Some(detail) => format!("{place}{detail}"),
        None => format!("{place}{error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}\
                          {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn template(source: &str) -> ChatTemplate {
        let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        ChatTemplate::new(source, special).unwrap()
    }

    fn render(source: &str) -> String {
        template(source)
            .render(&[Message::new("user", "hi")], GenerationPrompt::Omit)
            .unwrap()
    }

    fn chat(turns: &[(&str, &str)]) -> Vec<Message> {
        turns
            .iter()
            .map(|(role, content)| Message::new(role, content))
            .collect()
    }

    /// Every golden rendering was made by transformers; see `tests/golden/make_templates.py`.
    #[test]
    fn renders_as_transformers_does() {
        let golden: Json =
            serde_json::from_str(include_str!("../../../tests/golden/templates.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 20);
        for case in cases {
            let special = serde_json::from_value(golden["special_tokens"].clone()).unwrap();
            let source = golden["templates"][case["template"].as_str().unwrap()]
                .as_str()
                .unwrap();
            let record = super::super::Record {
                fields: Map::from_iter([("messages".to_owned(), case["messages"].clone())]),
                source: super::super::Source {
                    file: std::path::Path::new("golden").into(),
                    place: super::super::records::Place::Line(1),
                },
            };
            let generation = match case["add_generation_prompt"].as_bool().unwrap() {
                true => GenerationPrompt::Add,
                false => GenerationPrompt::Omit,
            };
            let template = ChatTemplate::new(source, special).unwrap();
            let found = template
                .render(&record.messages().unwrap(), generation)
                .map_err(|_| ());
            let expected = case["text"].as_str().map(str::to_owned).ok_or(());
            assert_eq!(found, expected, "{}", case["template"]);
        }
    }

    #[test]
    fn answers_are_what_a_turn_adds() {
        let messages = chat(&[
            ("user", "q"),
            ("assistant", "a"),
            ("user", "r"),
            ("assistant", "b"),
        ]);
        let spans = template(CHATML).spans(&messages, 0).unwrap();
        let expected = [
            Span::Given("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n".into()),
            Span::Answer("a<|im_end|>\n".into()),
            Span::Given("<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n".into()),
            Span::Answer("b<|im_end|>\n".into()),
        ];
        assert_eq!(spans, expected);
        let last_only = template(CHATML).spans(&messages, 2).unwrap();
        assert_eq!(last_only.len(), 2);
        assert_eq!(last_only[1], expected[3]);
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_is_refused() {
        let source = "{% for m in messages %}{{ m.role if loop.last else m.role[:1] }}:{{ m.content }};{% endfor %}";
        let messages = chat(&[("user", "q"), ("assistant", "a")]);
        let error = template(source)
            .spans(&messages, 0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("messages[1]") && error.contains("one answer a record"),
            "{error}"
        );
    }

    #[test]
    fn errors_name_the_line_and_the_templates_own_words() {
        let error = ChatTemplate::new("a\n{% if %}", BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 2"), "{error}");
        let source = "{{ raise_exception('roles must alternate') }}";
        let error = template(source)
            .render(&[], GenerationPrompt::Omit)
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 1: roles must alternate"), "{error}");
    }

    #[test]
    fn generation_blocks_and_dates() {
        let source = "{% generation %}\n{{ messages[0].content }}\n{%- endgeneration -%}\n!";
        assert_eq!(render(source), "hi!");
        let year: u32 = render("{{ strftime_now('%Y') }}").parse().unwrap();
        assert!(year > 2000);
    }
}
