//! Chat templates, rendered as in transformers, and cut into given text and answers.
//!
//! The environment is that of `transformers.utils.chat_template_utils`: Jinja2 with `trim_blocks`,
//! `lstrip_blocks` and loop controls; `raise_exception`, `strftime_now` and a `tojson` without HTML
//! escapes; `messages`, `tools`, `documents`, `add_generation_prompt`, the special tokens and the
//! record's own (`variables`) as variables. Values are printed as in Python (`python`). Null fields
//! of a message are left out. `{% generation %}` blocks are read as plain blocks: the answers are
//! found by rendering (`turns`) in every template.
//!
//! A template may be hostile; `limits` bounds its time, memory and depth.
//!
//! Left out: local time (`strftime_now` is UTC, so that the machine's zone has no effect), and
//! `continue_final_message`: a prompt whose last message is the assistant's is opened for another
//! one.

mod limits;
mod python;
mod turns;
mod variables;

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, context};
use serde_json::{Map, Value as Json};

use super::error::{DataError, Result};
use super::records::Message;
use limits::Bounded;
pub use turns::{Chat, ChatTurn};
pub use variables::Variables;

const NAME: &str = "chat_template";
/// The template of conversations with tools, if it is a separate one.
const TOOL_USE: &str = "tool_use";

/// Whether a rendering ends with the opening of an assistant turn (`add_generation_prompt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// The rendering ends with the opening of the assistant's next turn.
    Add,
    /// The rendering ends with the last message.
    Omit,
}

/// A piece of a rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSpan {
    /// Text that the model is given: headers, and the turns of other speakers.
    Given(String),
    /// Text that the model answers: the turn's content with its closing.
    Answer(String),
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Bounded,
    /// The template's file, as a prefix of messages; empty, or ending in `: `.
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
        environment.add_filter("trim", trim);
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

    /// This template with its file's name in errors.
    pub fn at(self, file: &str) -> Self {
        Self {
            place: format!("{file}: "),
            ..self
        }
    }

    /// This template with a second one, for conversations with tools.
    ///
    /// # Errors
    /// A template that is not valid Jinja, with its line.
    pub fn with_tool_use(mut self, source: &str) -> Result<Self> {
        self.environment
            .add_template(TOOL_USE, &plain_generation_blocks(source))
            .map_err(explain)?;
        Ok(self)
    }

    /// A conversation to render.
    pub fn chat<'a>(&'a self, messages: &'a [Message], variables: &'a Variables) -> Chat<'a> {
        Chat {
            template: self,
            messages,
            variables,
        }
    }

    /// Renders a conversation as `tokenizer.apply_chat_template(messages, tokenize=False)` does.
    ///
    /// # Errors
    /// If the template raises an error (`raise_exception`), or operates on a value of a type that
    /// it does not support.
    pub fn render(&self, messages: &[Message], generation: GenerationPrompt) -> Result<String> {
        self.render_with(messages, &Variables::default(), generation)
    }

    /// [`ChatTemplate::render`] with `tools=` and the other variables of a record.
    ///
    /// # Errors
    /// The errors of [`ChatTemplate::render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        variables: &Variables,
        generation: GenerationPrompt,
    ) -> Result<String> {
        let has_own = self.environment.has_template(TOOL_USE);
        let name = match variables.tools.is_some() && has_own {
            true => TOOL_USE,
            false => NAME,
        };
        let documents = variables.others.get("documents").unwrap_or(&Json::Null);
        let mut others = Map::new();
        let special_tokens = self.special_tokens.iter();
        others.extend(special_tokens.map(|(name, token)| (name.clone(), token.as_str().into())));
        others.extend(variables.others.clone());
        let variables = context! {
            messages => Serde(messages.iter().map(as_rendered).collect::<Vec<_>>()),
            tools => Serde(&variables.tools),
            documents => Serde(documents),
            add_generation_prompt => generation == GenerationPrompt::Add,
            ..Value::from(Serde(others))
        };
        let rendered = self.environment.render(name, variables);
        rendered.map_err(|error| explain(error).in_template(&self.place))
    }
}

/// A message's fields as transformers passes them to a template: without null fields, and with the
/// reasoning, which has one of three names, also under the two names that templates read.
fn as_rendered(message: &Message) -> Map<String, Json> {
    let mut fields = message.fields().clone();
    fields.retain(|_, value| !value.is_null());
    let names = ["reasoning_content", "thinking", "reasoning"];
    let Some(reasoning) = names.iter().find_map(|name| fields.get(*name)).cloned() else {
        return fields;
    };
    let mut all = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
    all.extend(fields);
    all.insert("reasoning_content".to_owned(), reasoning);
    all
}

/// Replaces the tags `generation`/`endgeneration`, an extension of transformers, by a block that
/// does nothing.
fn plain_generation_blocks(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, inside) = rest.split_at(start + 2);
        let Some((tag, _)) = inside.split_once("%}") else {
            break;
        };
        let name = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        plain.push_str(before);
        match name {
            "generation" => plain.push_str(&tag.replace(name, "if true")),
            "endgeneration" => plain.push_str(&tag.replace(name, "endif")),
            _ => plain.push_str(tag),
        }
        rest = &inside[tag.len()..];
    }
    plain + rest
}

/// `tojson(value, ensure_ascii=false, indent=none, separators=none, sort_keys=false)`, as
/// transformers defines it.
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

/// `str(value).strip(chars)`: Jinja2 takes any value for text.
fn trim(state: &State, value: &Value, chars: Option<String>) -> std::result::Result<String, Error> {
    limits::printable(state, value)?;
    let text = python::str(value)?;
    Ok(match chars {
        None => text.trim().to_owned(),
        Some(chars) => text.trim_matches(|c: char| chars.contains(c)).to_owned(),
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
    let message = match error.detail() {
        Some(detail) => format!("{place}{detail}"),
        None => format!("{place}{error}"),
    };
    match limits::is_exceeded(&error) {
        true => DataError::TemplateBound(message),
        false => DataError::Template(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        ChatTemplate::new(source, special).unwrap()
    }

    fn render(source: &str) -> String {
        template(source)
            .render(&[Message::new("user", "hi")], GenerationPrompt::Omit)
            .unwrap()
    }

    /// Every golden rendering was made by transformers; see `tests/golden/make_templates.py`.
    #[test]
    fn renders_as_transformers_does() {
        let golden: Json =
            serde_json::from_str(include_str!("../../../tests/golden/templates.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 90);
        for case in cases {
            let record = super::super::Record {
                fields: case.as_object().unwrap().clone(),
                source: super::super::RecordSource {
                    file: std::path::Path::new("golden").into(),
                    place: super::super::records::RecordPlace::Line(1),
                },
            };
            let generation = match case["add_generation_prompt"].as_bool().unwrap() {
                true => GenerationPrompt::Add,
                false => GenerationPrompt::Omit,
            };
            let source = &golden["templates"][case["template"].as_str().unwrap()];
            let template = compiled(source, &golden["special_tokens"]);
            let variables = Variables::of(&record).unwrap();
            let found = template
                .render_with(&record.messages().unwrap(), &variables, generation)
                .map_err(|_| ());
            let expected = case["text"].as_str().map(str::to_owned).ok_or(());
            assert_eq!(found, expected, "{case}");
        }
    }

    /// A template, or a default one and one for tools.
    fn compiled(source: &Json, special_tokens: &Json) -> ChatTemplate {
        let special = serde_json::from_value(special_tokens.clone()).unwrap();
        match source.as_str() {
            Some(source) => ChatTemplate::new(source, special).unwrap(),
            None => ChatTemplate::new(source["default"].as_str().unwrap(), special)
                .and_then(|template| template.with_tool_use(source["tool_use"].as_str().unwrap()))
                .unwrap(),
        }
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
    fn a_tag_that_is_too_short_is_refused_or_text() {
        assert!(ChatTemplate::new("{%}", BTreeMap::new()).is_err());
        assert_eq!(render("{# {%} #}a"), "a");
    }

    #[test]
    fn generation_blocks_and_dates() {
        let source = "{% generation %}\n{{ messages[0].content }}\n{%- endgeneration -%}\n!";
        assert_eq!(render(source), "hi!");
        let year: u32 = render("{{ strftime_now('%Y') }}").parse().unwrap();
        assert!(year > 2000);
    }
}
