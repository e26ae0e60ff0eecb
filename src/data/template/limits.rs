//! Bounds on a chat template of unknown origin: a template that does not end, or that takes all
//! memory or stack, is refused with the bound that it exceeds.
//!
//! - *Steps.* A rendering has [`STEPS`] steps; a step is an instruction, 64 bytes of text, or two
//!   visited items (minijinja's fuel). Ordinary templates take a few hundred per message.
//! - *Depth.* A template has at most [`ELIFS`] `elif` tags, and a tag [`TAG_TOKENS`] tokens. Macros
//!   call themselves [`RECURSION`] deep. A value that `set` stores or a tag prints nests at most
//!   [`DEPTH`] deep, and a namespace holds no namespace. So every recursion over a template or a
//!   value fits the monitored thread's stack.
//! - *Time and memory.* Work that the engine does not count, such as comparing or printing values
//!   that contain each other many times, is monitored ([`guard`](crate::data::guard)).
//!
//! minijinja has no hook for stored values, so each `{% set name = value %}` is compiled as `{% set
//! name = (value)|stored %}`, with a filter of ours.

use std::cell::Cell;
use std::sync::Arc;

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{DynObject, ObjectRepr, Value};
use minijinja::{Environment, Error, ErrorKind, State};

use super::python::JsonStyle;
use crate::data::guard::{Bounds, watched};

/// Largest number of steps of one rendering.
const STEPS: u64 = 10_000_000;
/// Largest depth of nested macros and loops.
const RECURSION: usize = 200;
/// Largest depth of nested lists and maps.
const DEPTH: usize = 100;
/// Largest number of tokens of a tag.
const TAG_TOKENS: usize = 2000;
/// Largest number of `elif` tags of a template: each is parsed inside the one before it.
const ELIFS: usize = 2000;
/// Largest number of characters of an error that a template raises.
const MESSAGE: usize = 2000;
/// Largest number of bytes of the two separators of `tojson`.
const SEPARATORS: usize = 100;
/// Largest number of bytes of a template.
const SOURCE: usize = 1 << 20;
/// Largest indentation of `tojson`, in spaces a level.
const INDENT: usize = 100;
/// Time and memory of compiling, or of one rendering.
const BOUNDS: Bounds = Bounds {
    seconds: 10,
    bytes: 1 << 30,
};

/// The filter around values that are assigned to a name.
const STORED: &str = "collimate_stored";
/// The filter around values that are assigned to an attribute of a namespace.
const STORED_IN_NAMESPACE: &str = "collimate_stored_in_namespace";
/// The type of minijinja's namespaces, which is not public.
const NAMESPACE: &str = "Namespace";

/// An environment whose templates stay within bounds.
#[derive(Debug)]
pub(super) struct Bounded(Arc<Environment<'static>>);

impl Bounded {
    /// Bounds the compiling and rendering of `environment`.
    pub fn new(mut environment: Environment<'static>) -> Self {
        environment.set_fuel(Some(STEPS));
        environment.set_recursion_limit(RECURSION);
        environment.add_filter(STORED, stored);
        environment.add_filter(STORED_IN_NAMESPACE, stored_in_namespace);
        environment.add_filter("pprint", |state: &State, value: &Value| {
            printable(state, value)?;
            Ok::<_, Error>(minijinja::filters::pprint(value))
        });
        environment.set_unknown_method_callback(method);
        Self(Arc::new(environment))
    }

    /// Compiles a template.
    ///
    /// # Errors
    /// If it is not valid, or exceeds a bound.
    pub fn add_template(&mut self, name: &'static str, source: &str) -> Result<(), Error> {
        if source.len() > SOURCE {
            return Err(refused(format!(
                "has {} bytes; at most {SOURCE} are read",
                source.len()
            )));
        }
        let mut environment = Environment::clone(&self.0);
        let source = source.to_owned();
        let compiled = watched(BOUNDS, move || {
            let source = checked_sets(&source, environment.syntax().clone())?;
            environment.add_template_owned(name, source)?;
            Ok::<_, Error>(environment)
        });
        let environment = compiled.map_err(|excess| refused(excess.to_string()))??;
        self.0 = Arc::new(environment);
        Ok(())
    }

    /// True if a template of that name was added.
    pub fn has_template(&self, name: &str) -> bool {
        self.0.get_template(name).is_ok()
    }

    /// Renders a template.
    ///
    /// # Errors
    /// The template's error, or the bound that it exceeds.
    pub fn render(&self, name: &'static str, variables: Value) -> Result<String, Error> {
        let environment = Arc::clone(&self.0);
        let rendered = watched(BOUNDS, move || {
            environment.get_template(name)?.render(variables)
        });
        let rendered = rendered.map_err(|excess| refused(excess.to_string()))?;
        rendered.map_err(in_words)
    }
}

/// The source of an error of a template that exceeds a bound.
#[derive(Debug, thiserror::Error)]
#[error("a bound on templates is exceeded")]
struct Exceeded;

/// An error; `what` follows "the template" in its message.
fn refused(what: String) -> Error {
    let words = format!("the template {what}; it is broken, or made to harm");
    Error::new(ErrorKind::InvalidOperation, words).with_source(Exceeded)
}

/// True if an error says that the template exceeds a bound.
pub(super) fn is_exceeded(error: &Error) -> bool {
    let mut sources = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    sources.any(|source| source.is::<Exceeded>())
}

/// The message of a template that ran out of steps; messages of other errors are cut if they are
/// long.
fn in_words(error: Error) -> Error {
    let line = error.line();
    let at = line.map_or(String::new(), |line| format!(" (stopped at line {line})"));
    if error.kind() == ErrorKind::OutOfFuel {
        return refused(format!(
            "takes more than {} million steps for one conversation{at}",
            STEPS / 1_000_000
        ));
    }
    match error.detail() {
        Some(detail) if detail.chars().nth(MESSAGE).is_some() => {
            let shown: String = detail.chars().take(MESSAGE).collect();
            Error::new(error.kind(), format!("{shown}…{at}"))
        }
        _ => error,
    }
}

/// The source with a filter around every value that `set` stores. Line numbers do not change.
fn checked_sets(source: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    let mut out = String::with_capacity(source.len() + source.len() / 8);
    let mut copied = 0;
    let mut copy = |until: usize, then: &str| {
        out.push_str(&source[copied..until]);
        out.push_str(then);
        copied = until;
    };
    let (mut tag, mut elifs) = (Tag::default(), 0);
    for token in tokenize(source, false, syntax) {
        // A syntax error is reported when the template is compiled, with its line.
        let Ok((token, span)) = token else { break };
        match token {
            Token::BlockStart | Token::VariableStart => tag = Tag::default(),
            Token::BlockEnd => {
                if let (Some(start), Some(end)) = (tag.value, tag.end) {
                    copy(start, " (");
                    copy(end, &format!(")|{}", tag.filter()));
                }
            }
            token => {
                tag.read(&token, span.end_offset as usize);
                elifs += usize::from(tag.tokens == 1 && matches!(token, Token::Ident("elif")));
            }
        }
        if elifs > ELIFS {
            return Err(refused(format!("has more than {ELIFS} elif tags")));
        }
        if tag.tokens > TAG_TOKENS {
            return Err(refused(format!(
                "has a tag of more than {TAG_TOKENS} tokens in line {}",
                span.start_line
            )));
        }
    }
    copy(source.len(), "");
    Ok(out)
}

/// State of a tag as far as it has been read.
#[derive(Default)]
struct Tag {
    tokens: usize,
    is_set: bool,
    /// Brackets that are open.
    open: usize,
    /// True if an attribute is assigned to.
    attribute: bool,
    /// The byte at which the assigned value begins.
    value: Option<usize>,
    /// The byte at which the last token ends.
    end: Option<usize>,
}

impl Tag {
    fn read(&mut self, token: &Token, end: usize) {
        self.tokens += 1;
        self.end = Some(end);
        match token {
            Token::Ident("set") if self.tokens == 1 => self.is_set = true,
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => self.open += 1,
            Token::ParenClose | Token::BracketClose | Token::BraceClose => {
                self.open = self.open.saturating_sub(1);
            }
            Token::Dot if self.value.is_none() => self.attribute = true,
            Token::Assign if self.is_set && self.open == 0 && self.value.is_none() => {
                self.value = Some(end);
            }
            _ => {}
        }
    }

    fn filter(&self) -> &'static str {
        match self.attribute {
            true => STORED_IN_NAMESPACE,
            false => STORED,
        }
    }
}

/// Returns a value that is not too deep. A lazy sequence becomes a list, because lazy sequences
/// could contain each other.
fn stored(state: &State, value: Value) -> Result<Value, Error> {
    let value = match value.as_object() {
        Some(object) if object.repr() == ObjectRepr::Iterable => {
            let walk = TemplateWalk::new(state, Text::Shared);
            let items = object.try_iter().into_iter().flatten();
            let paid = items.map(|item| walk.pay(0).map(|()| item));
            Value::from(paid.collect::<Result<Vec<Value>, Error>>()?)
        }
        _ => value,
    };
    if let Some(object) = value.as_object() {
        TemplateWalk::new(state, Text::Shared).object(object, DEPTH)?;
    }
    Ok(value)
}

/// [`stored`] for an attribute; a namespace is refused, because it could contain itself.
fn stored_in_namespace(state: &State, value: Value) -> Result<Value, Error> {
    let value = stored(state, value)?;
    match value.as_object().is_some_and(holds_namespace) {
        true => Err(refused("stores a namespace in a namespace".to_owned())),
        false => Ok(value),
    }
}

/// Checks that a value is neither too deep nor infinite. The walk costs steps.
///
/// # Errors
/// If the value is too deep, or the walk takes more steps than are left.
pub(super) fn printable(state: &State, value: &Value) -> Result<(), Error> {
    match value.as_object() {
        Some(object) => TemplateWalk::new(state, Text::Written).object(object, DEPTH),
        None => Ok(()),
    }
}

/// Cost of the text in a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Text {
    /// Text is not copied, and costs nothing.
    Shared,
    /// Text is written out.
    Written,
}

/// A walk over a value and its contents, repeated ones included.
struct TemplateWalk<'a, 't, 'e> {
    state: &'a State<'t, 'e>,
    text: Text,
    /// Bytes of text whose steps were not yet charged.
    unpaid: Cell<u64>,
}

impl<'a, 't, 'e> TemplateWalk<'a, 't, 'e> {
    fn new(state: &'a State<'t, 'e>, text: Text) -> Self {
        Self {
            state,
            text,
            unpaid: Cell::new(0),
        }
    }

    /// Charges the steps of a value with this many bytes of text.
    fn pay(&self, bytes: usize) -> Result<(), Error> {
        const VALUE: u64 = 8;
        const STEP: u64 = 64;
        let unpaid = self.unpaid.get() + VALUE + bytes as u64;
        self.unpaid.set(unpaid % STEP);
        match unpaid / STEP {
            0 => Ok(()),
            steps => self.state.consume_fuel(steps),
        }
    }

    fn value(&self, value: &Value, levels: usize) -> Result<(), Error> {
        match value.as_object() {
            Some(object) => self.object(object, levels),
            None if self.text == Text::Shared => self.pay(0),
            None => self.pay(value.as_str().map_or(0, str::len)),
        }
    }

    fn object(&self, object: &DynObject, levels: usize) -> Result<(), Error> {
        let Some(levels) = levels.checked_sub(1) else {
            return Err(refused(format!(
                "nests lists and maps more than {DEPTH} deep"
            )));
        };
        self.pay(0)?;
        match object.repr() {
            ObjectRepr::Map => {
                let mut pairs = object.try_iter_pairs().into_iter().flatten();
                pairs.try_for_each(|(key, value)| {
                    self.value(&key, levels)?;
                    self.value(&value, levels)
                })
            }
            ObjectRepr::Seq | ObjectRepr::Iterable => {
                let mut items = object.try_iter().into_iter().flatten();
                items.try_for_each(|item| self.value(&item, levels))
            }
            _ => Ok(()),
        }
    }
}

/// True if an object that a [`TemplateWalk`] has seen is a namespace or holds one.
fn holds_namespace(object: &DynObject) -> bool {
    let inner = |value: Value| value.as_object().is_some_and(holds_namespace);
    match object.repr() {
        ObjectRepr::Map if is_namespace(object) => true,
        ObjectRepr::Map => object
            .try_iter_pairs()
            .into_iter()
            .flatten()
            .any(|(key, value)| inner(key) || inner(value)),
        ObjectRepr::Seq | ObjectRepr::Iterable => {
            object.try_iter().into_iter().flatten().any(inner)
        }
        _ => false,
    }
}

fn is_namespace(object: &DynObject) -> bool {
    let name = object.type_name();
    name.rsplit("::").next() == Some(NAMESPACE)
}

/// Checks that the output of `tojson` is bounded by the size of its value.
///
/// # Errors
/// If the indentation or the separators are too long.
pub(super) fn check_style(style: &JsonStyle) -> Result<(), Error> {
    let separators = style.separators.iter().flatten();
    let bytes: usize = separators.map(String::len).sum();
    match (style.indent, bytes) {
        (Some(spaces), _) if spaces > INDENT => Err(refused(format!(
            "indents JSON by {spaces} spaces; at most {INDENT} are written"
        ))),
        (_, bytes) if bytes > SEPARATORS => Err(refused(format!(
            "separates JSON by {bytes} bytes; at most {SEPARATORS} are written"
        ))),
        _ => Ok(()),
    }
}

/// Python's methods. Methods that walk lists or repeat text are charged their steps first.
fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if matches!(method, "count" | "join" | "format") {
        std::iter::once(value)
            .chain(args)
            .try_for_each(|value| printable(state, value))?;
    }
    if method == "format" {
        refuse_wide_fields(value)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Refuses fields of `str.format` that pad to more than four digits.
fn refuse_wide_fields(format: &Value) -> Result<(), Error> {
    let wide = |field: &str| {
        let (_, spec) = field.split_once(':').unwrap_or_default();
        spec.split(|c: char| !c.is_ascii_digit())
            .any(|n| n.len() > 4)
    };
    let fields = |text: &str| {
        text.split('{')
            .any(|field| wide(field.split('}').next().unwrap_or("")))
    };
    match format.as_str().is_some_and(fields) {
        true => Err(refused("pads text to 10000 characters or more".to_owned())),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
