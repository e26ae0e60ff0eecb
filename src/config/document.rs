//! The configuration file as the user typed it: tables of TOML values, each with the place it came
//! from.
//!
//! It knows TOML, lines and overrides, but no key: what the keys mean is said by the structures
//! that a table is [lowered](Document::lower) to. Defaults are not written twice either: a table is
//! overlaid on the serialised [`Default`] of its structure, and the names in that serialisation are
//! the names that the table may use.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::check::Checker;
use super::error::{ConfigError, Place};
use super::names;

/// An override of one key, `--set ppo.kl_coef=0.1`.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    table: String,
    key: String,
    value: Value,
    text: String,
}

impl std::str::FromStr for Override {
    type Err = ConfigError;

    /// Reads `TABLE.KEY=VALUE`, or `TABLE.KEY.PART=VALUE` where the key's value is a table itself. The value is TOML; what is not TOML and does not look like the
    /// start of a list, table or quoted string is taken as a string, so that `--set run.name=trial`
    /// needs no quotes.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refuse = |message: &str| ConfigError::Override {
            text: text.into(),
            message: message.into(),
        };
        let usage = "expected TABLE.KEY=VALUE, for example ppo.kl_coef=0.1";
        let (name, value) = text.split_once('=').ok_or_else(|| refuse(usage))?;
        let (table, key) = name.trim().split_once('.').ok_or_else(|| refuse(usage))?;
        let parts = || key.split('.');
        if table.is_empty() || parts().any(str::is_empty) || parts().count() > 2 {
            return Err(refuse(usage));
        }
        let value = parse_value(value.trim()).map_err(|message| refuse(&message))?;
        Ok(Self {
            table: table.into(),
            key: key.into(),
            value,
            text: text.into(),
        })
    }
}

fn parse_value(text: &str) -> Result<Value, String> {
    match text.parse::<Value>() {
        Ok(value) => Ok(value),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            Err(format!("the value is not valid TOML: {}", error.message()))
        }
        Err(_) => Ok(Value::String(text.into())),
    }
}

/// A configuration file after parsing and overrides, before any key has been looked at.
#[derive(Clone, Debug)]
pub struct Document {
    file: PathBuf,
    tables: Table,
    /// `table` and `table.key` → where it was given.
    places: BTreeMap<String, Place>,
}

impl Document {
    /// Reads and parses `file`. A relative path starts at the current directory.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(file).map_err(|source| ConfigError::Read {
            file: file.into(),
            looked_in: std::env::current_dir().unwrap_or_default(),
            source,
        })?;
        Self::parse(&text, file)
    }

    /// Parses `text`; `file` is what errors call it.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let spanned = toml::de::DeTable::parse(text).map_err(|error| syntax(&error, text, file))?;
        let tables = text
            .parse::<Table>()
            .map_err(|error| syntax(&error, text, file))?;
        let mut places = BTreeMap::new();
        let mut note = |name: String, offset: usize| {
            let (line, _) = position(text, offset);
            places.insert(
                name,
                Place::Line {
                    file: file.into(),
                    line,
                },
            );
        };
        for (name, table) in spanned.get_ref() {
            note(name.get_ref().to_string(), name.span().start);
            for key in table
                .get_ref()
                .as_table()
                .into_iter()
                .flat_map(|table| table.keys())
            {
                note(
                    format!("{}.{}", name.get_ref(), key.get_ref()),
                    key.span().start,
                );
            }
        }
        Ok(Self {
            file: file.into(),
            tables,
            places,
        })
    }

    /// Applies overrides, the last of a key winning.
    ///
    /// # Errors
    /// If an override names a stage that the file does not have: it would add a stage by accident.
    pub fn with(mut self, overrides: &[Override]) -> Result<Self, ConfigError> {
        for Override {
            table,
            key,
            value,
            text,
        } in overrides
        {
            if names::is_stage(table) && !self.tables.contains_key(table) {
                let message = format!(
                    "{} has no [{table}] table to set a key in",
                    self.file.display()
                );
                return Err(ConfigError::Override {
                    text: text.clone(),
                    message,
                });
            }
            let entry = self
                .tables
                .entry(table.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            // Something that is not a table is refused, with its line, when the tables' names are
            // checked.
            let key = insert(entry, key, value);
            let place = Place::Override(text.clone());
            self.places
                .entry(table.clone())
                .or_insert_with(|| place.clone());
            self.places.insert(format!("{table}.{key}"), place);
        }
        Ok(self)
    }

    /// Whether the file has the table `name`.
    pub fn has(&self, name: &str) -> bool {
        self.tables.contains_key(name)
    }

    /// Names and values of the top level.
    pub(super) fn tables(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.tables
            .iter()
            .map(|(name, value)| (name.as_str(), value))
    }

    /// Whether the user typed `table.key`, in the file or as an override.
    pub fn typed(&self, table: &str, key: &str) -> bool {
        self.places.contains_key(&format!("{table}.{key}"))
    }

    /// Where `table.key` was given; [`Place::Default`] if it was not.
    pub fn place(&self, table: &str, key: &str) -> Place {
        self.places
            .get(&format!("{table}.{key}"))
            .cloned()
            .unwrap_or(Place::Default)
    }

    /// Where the table itself was given; line 1 of the file if it was not.
    pub fn table_place(&self, table: &str) -> Place {
        let top = || Place::Line {
            file: self.file.clone(),
            line: 1,
        };
        self.places.get(table).cloned().unwrap_or_else(top)
    }

    /// Turns the table `name` into a `T`, untyped keys having `T`'s defaults.
    ///
    /// Unknown keys and values of a wrong type go to `checker`; what is then returned is `T`
    /// without them, so that the checks that follow can go on.
    pub fn lower<T>(&self, name: &str, checker: &mut Checker<'_>) -> Result<T, ConfigError>
    where
        T: Default + Serialize + DeserializeOwned,
    {
        let known = key_names(&T::default())?;
        let mut values = to_table(&T::default())?;
        let typed = self.tables.get(name).and_then(Value::as_table);
        for (key, value) in typed.into_iter().flatten() {
            if !known.contains(key) {
                checker.unknown_key(name, key, &known);
                continue;
            }
            // Each key is tried alone on top of the defaults: an error is then surely its own.
            let before = values.insert(key.clone(), value.clone());
            if let Err(error) = values.clone().try_into::<T>() {
                checker.wrong_type(name, key, value, error.message());
                match before {
                    Some(default) => values.insert(key.clone(), default),
                    None => values.remove(key),
                };
            }
        }
        values
            .try_into()
            .map_err(|error| ConfigError::Serialize(error.to_string()))
    }
}

/// Sets `key`, or a part of it, in a table, and returns the key.
fn insert<'k>(table: &mut Value, key: &'k str, value: &Value) -> &'k str {
    let Some(entries) = table.as_table_mut() else {
        return key;
    };
    let Some((key, part)) = key.split_once('.') else {
        entries.insert(key.to_owned(), value.clone());
        return key;
    };
    let whole = entries
        .entry(key.to_owned())
        .or_insert_with(|| Value::Table(Table::new()));
    if !whole.is_table() {
        *whole = Value::Table(Table::new());
    }
    insert(whole, part, value);
    key
}

/// The names of all keys of `value`, those that are unset included.
pub fn key_names<T: Serialize>(value: &T) -> Result<Vec<String>, ConfigError> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::Object(entries)) => {
            Ok(entries.into_iter().map(|(key, _)| key).collect())
        }
        Ok(other) => Err(ConfigError::Serialize(format!(
            "expected a table, found {other}"
        ))),
        Err(error) => Err(ConfigError::Serialize(error.to_string())),
    }
}

/// `value` as a TOML table; unset optional keys are left out, for TOML has no word for them.
pub fn to_table<T: Serialize>(value: &T) -> Result<Table, ConfigError> {
    Table::try_from(to_json(value)?).map_err(|error| ConfigError::Serialize(error.to_string()))
}

/// `value` as TOML text, keys in the order of its fields.
pub fn to_toml<T: Serialize>(value: &T) -> Result<String, ConfigError> {
    toml::to_string(&to_json(value)?).map_err(|error| ConfigError::Serialize(error.to_string()))
}

fn to_json<T: Serialize>(value: &T) -> Result<serde_json::Value, ConfigError> {
    let json =
        serde_json::to_value(value).map_err(|error| ConfigError::Serialize(error.to_string()))?;
    Ok(without_nulls(json))
}

fn without_nulls(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(entries) => entries
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        serde_json::Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

fn syntax(error: &toml::de::Error, text: &str, file: &Path) -> ConfigError {
    let (line, column) = position(text, error.span().map_or(0, |span| span.start));
    ConfigError::Syntax {
        file: file.into(),
        line,
        column,
        message: error.message().into(),
    }
}

/// Line and column, counted from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[start..].chars().count() + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_toml_or_bare_words() {
        let value = |text: &str| {
            text.parse::<Override>()
                .map(|o| o.value)
                .map_err(|e| e.to_string())
        };
        assert_eq!(value("ppo.kl_coef=0.1"), Ok(Value::Float(0.1)));
        assert_eq!(
            value("run.name=trial-2"),
            Ok(Value::String("trial-2".into()))
        );
        assert_eq!(
            value("sft.data=[\"a\", \"b\"]"),
            Ok(Value::Array(vec!["a".into(), "b".into()]))
        );
        assert_eq!(value("model.from="), Ok(Value::String(String::new())));
        assert!(value("sft.data=[a").is_err_and(|e| e.contains("not valid TOML")));
        assert!(value("kl_coef=0.1").is_err_and(|e| e.contains("TABLE.KEY=VALUE")));
        assert!(value("ppo.kl_coef").is_err_and(|e| e.contains("TABLE.KEY=VALUE")));
    }

    #[test]
    fn places_are_lines_and_overrides_replace_them() {
        let text = "# head\n[run]\nname = \"a\"\n\n[ppo]\nkl_coef = 0.05\n";
        let document = Document::parse(text, Path::new("c.toml")).unwrap();
        assert_eq!(document.place("ppo", "kl_coef").to_string(), "c.toml:6");
        assert_eq!(document.table_place("ppo").to_string(), "c.toml:5");
        assert_eq!(document.place("ppo", "lam"), Place::Default);
        let document = document.with(&["ppo.kl_coef=1".parse().unwrap()]).unwrap();
        assert_eq!(
            document.place("ppo", "kl_coef").to_string(),
            "--set ppo.kl_coef=1"
        );
    }

    #[test]
    fn an_override_does_not_add_a_stage() {
        let document = Document::parse("[run]\nname = \"a\"\n", Path::new("c.toml")).unwrap();
        let error = document
            .with(&["ppo.kl_coef=1".parse().unwrap()])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "--set ppo.kl_coef=1: c.toml has no [ppo] table to set a key in"
        );
    }

    #[test]
    fn bad_toml_names_line_and_column() {
        let error = Document::parse("[run]\nname = = 1\n", Path::new("c.toml")).unwrap_err();
        assert!(
            error.to_string().starts_with("c.toml:2:8: not valid TOML"),
            "{error}"
        );
    }
}
