//! Collects the problems of a configuration.
//!
//! Checks do not stop at the first problem: [`Checker::finish`] reports all of them at once.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use toml::Value;

use super::document::Document;
use super::error::{ConfigError, Problem, Problems, ValueOrigin};
use super::hub::HubName;
use super::{names, trl_defaults};

/// Most keys of a table that a message lists.
const MOST_LISTED: usize = 10;

/// Problems found so far, and the document that they are in.
#[derive(Debug)]
pub struct Checker<'a> {
    /// `None` when the values come from flags of the command line.
    document: Option<&'a Document>,
    problems: Vec<Problem>,
}

impl<'a> Checker<'a> {
    /// A checker for the values of `document`.
    pub fn new(document: &'a Document) -> Self {
        Self {
            document: Some(document),
            problems: Vec::new(),
        }
    }

    /// A checker for values given as flags: keys are named `--top-p`.
    pub fn flags() -> Self {
        Self {
            document: None,
            problems: Vec::new(),
        }
    }

    /// The checks of one table's keys.
    pub fn table<'b>(&'b mut self, name: &'b str) -> Keys<'b, 'a> {
        Keys {
            checker: self,
            table: name,
        }
    }

    /// Ends the checks.
    ///
    /// # Errors
    /// With all problems found so far.
    pub fn finish(&mut self) -> Result<(), ConfigError> {
        match std::mem::take(&mut self.problems) {
            problems if problems.is_empty() => Ok(()),
            problems => Err(ConfigError::Invalid(Problems(problems))),
        }
    }

    /// Reports an unknown table, or a key outside any table.
    pub(super) fn unknown_table(&mut self, name: &str, value: &Value) {
        let message = match (value.is_table(), names::nearest(name, names::tables())) {
            (true, Some(near)) => format!("unknown table; did you mean [{near}]?"),
            (true, None) => format!("unknown table; known are {}", listed(names::tables())),
            (false, _) => {
                "stands outside any table; put it under the table it belongs to, such as [run]"
                    .into()
            }
        };
        let place = self
            .document
            .map_or(ValueOrigin::Flag, |document| document.table_place(name));
        let key = if value.is_table() {
            format!("[{name}]")
        } else {
            name.into()
        };
        self.problems.push(Problem {
            key,
            value: None,
            place,
            message,
        });
    }

    /// Reports a plain value with the name of a table.
    pub(super) fn not_a_table(&mut self, name: &str) {
        let place = self
            .document
            .map_or(ValueOrigin::Flag, |document| document.table_place(name));
        let message =
            format!("must be a table; write [{name}] on a line of its own and its keys below");
        self.problems.push(Problem {
            key: name.into(),
            value: None,
            place,
            message,
        });
    }

    /// Reports a configuration without a stage.
    pub(super) fn no_stage(&mut self) {
        let tables = super::Stage::ALL.map(|stage| format!("[{stage}]"));
        let message = format!("has no stage; add at least one of {}", tables.join(", "));
        let place = self
            .document
            .map_or(ValueOrigin::Flag, |document| document.table_place(""));
        self.problems.push(Problem {
            key: "the configuration".into(),
            value: None,
            place,
            message,
        });
    }

    /// Reports a key that `table` does not have.
    pub(super) fn unknown_key(&mut self, table: &str, key: &str, known: &[String]) {
        let meant = |near: &str| format!("did you mean `{near}`?");
        let words = names::alias(key, known)
            .map(meant)
            .or_else(|| trl_defaults::counterpart(table, key))
            .or_else(|| names::nearest(key, known.iter().map(String::as_str)).map(meant))
            .unwrap_or_else(|| some_keys(table, key, known));
        self.table(table)
            .note(key, None, format!("unknown key; {words}"));
    }

    /// Reports a value of the wrong type, or an unknown word.
    pub(super) fn wrong_type(&mut self, table: &str, key: &str, value: &Value, serde: &str) {
        self.table(table)
            .note(key, Some(value.to_string()), in_plain_words(serde));
    }
}

/// The checks of one table's keys.
#[derive(Debug)]
pub struct Keys<'b, 'a> {
    checker: &'b mut Checker<'a>,
    table: &'b str,
}

impl Keys<'_, '_> {
    /// Reports the `value` of `key`; `message` is the fault and its remedy.
    pub fn wrong(&mut self, key: &str, value: impl Display, message: impl Into<String>) {
        self.note(key, Some(value.to_string()), message.into());
    }

    /// Reports a key that must not be given.
    pub fn misplaced(&mut self, key: &str, message: &str) {
        self.note(key, None, message.into());
    }

    /// Reports a required key that is missing; `mend` is the remedy.
    pub fn missing(&mut self, key: &str, mend: &str) {
        self.note(key, None, format!("is required: {mend}"));
    }

    /// `value` must be finite and larger than `low`.
    pub fn above(&mut self, key: &str, value: f64, low: f64, mend: &str) {
        if !(value > low && value.is_finite()) {
            let finite = finite(value);
            self.wrong(
                key,
                value,
                format!("must be {finite}larger than {low}; {mend}"),
            );
        }
    }

    /// `value` must lie between `low` and `high`, both included.
    pub fn between(&mut self, key: &str, value: f64, low: f64, high: f64, mend: &str) {
        if !(low..=high).contains(&value) {
            self.wrong(
                key,
                value,
                format!("must lie between {low} and {high}; {mend}"),
            );
        }
    }

    /// `value` must be finite, and zero or larger.
    pub fn not_negative(&mut self, key: &str, value: f64, mend: &str) {
        if !(value >= 0.0 && value.is_finite()) {
            let finite = finite(value);
            self.wrong(
                key,
                value,
                format!("must be {finite}zero or larger; {mend}"),
            );
        }
    }

    /// `value` must be `low` or larger.
    pub fn at_least(&mut self, key: &str, value: usize, low: usize, mend: &str) {
        if value < low {
            self.wrong(key, value, format!("must be at least {low}; {mend}"));
        }
    }

    /// The file or folder `path` must exist. Relative paths start at the current directory.
    pub fn exists(&mut self, key: &str, path: &Path) {
        if !path.exists() {
            let looked = std::path::absolute(path).unwrap_or_else(|_| path.into());
            let message = format!("no such file or folder (looked for {})", looked.display());
            self.wrong(key, format!("\"{}\"", path.display()), message);
        }
    }

    /// The model folder `path` must exist or, with the feature `hub`, be the name of a model there.
    pub fn model_exists(&mut self, key: &str, path: &Path) {
        if let Some(inner) = model_below(path) {
            let message = format!("holds no model; did you mean \"{}\"?", inner.display());
            return self.wrong(key, format!("\"{}\"", path.display()), message);
        }
        match HubName::parse(path) {
            Some(_) if path.exists() || cfg!(feature = "hub") => {}
            Some(name) => {
                let message = format!(
                    "no such folder here; if the Hugging Face hub's model {} is meant, build with \
                     --features hub",
                    name.repo
                );
                self.wrong(key, format!("\"{}\"", path.display()), message);
            }
            None => self.exists(key, path),
        }
    }

    fn note(&mut self, key: &str, value: Option<String>, message: String) {
        let (name, place) = match self.checker.document {
            None => (format!("--{}", key.replace('_', "-")), ValueOrigin::Flag),
            Some(document) if value.is_none() && !document.typed(self.table, key) => (
                format!("{}.{key}", self.table),
                document.table_place(self.table),
            ),
            Some(document) => (
                format!("{}.{key}", self.table),
                document.place(self.table, key),
            ),
        };
        self.checker.problems.push(Problem {
            key: name,
            value,
            place,
            message,
        });
    }
}

/// The keys of `table`, or the nearest of many.
fn some_keys(table: &str, key: &str, known: &[String]) -> String {
    if known.len() <= MOST_LISTED {
        return format!("[{table}] has {}", listed(known.iter().map(String::as_str)));
    }
    let nearest = names::by_similarity(key, known.iter().map(String::as_str));
    let nearest = listed(nearest.into_iter().take(MOST_LISTED));
    format!("the nearest in [{table}] are {nearest}; `collimate config {table}` lists all")
}

/// Additional requirement in the message on a number that is NaN or infinite.
fn finite(value: f64) -> &'static str {
    match value.is_finite() {
        true => "",
        false => "finite and ",
    }
}

/// The folder of the final model in `path`, if `path` is the folder of a stage.
pub fn model_below(path: &Path) -> Option<PathBuf> {
    let is_model = |folder: &Path| {
        let files = ["config.json", "adapter_config.json", "tokenizer.json"];
        files.iter().any(|file| folder.join(file).is_file())
    };
    let inner = path.join("final");
    (!is_model(path) && is_model(&inner)).then_some(inner)
}

fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// Replaces the names of Rust's types and variants in a message of serde.
fn in_plain_words(serde: &str) -> String {
    let types = [
        ("expected usize", "expected a whole number, zero or larger"),
        ("expected u64", "expected a whole number, zero or larger"),
        ("expected u32", "expected a whole number, zero or larger"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        (
            "expected a sequence",
            "expected a list, such as [\"a\", \"b\"]",
        ),
        ("unknown variant", "unknown word"),
        ("unknown field", "unknown key"),
        ("path string", "a path in quotes"),
    ];
    let line = serde.lines().next().unwrap_or_default();
    types.iter().fold(line.to_string(), |text, (rust, plain)| {
        text.replace(rust, plain)
    })
}
