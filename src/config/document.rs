//! The configuration file before any key is interpreted: tables of TOML values, each with its line
//! or override.
//!
//! No key is known here. A table is [lowered](Document::lower) to a structure: it is overlaid on
//! the serialised [`Default`] of the structure, whose field names are the keys that the table may
//! have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::{ConfigError, ValueOrigin};
use super::names;
use super::overrides::{Override, Within};
use crate::files::regular;

/// A configuration file after parsing and overrides, before any key is interpreted.
#[derive(Clone, Debug)]
pub struct Document {
    file: PathBuf,
    pub(super) tables: Table,
    /// Lines or overrides of `table` and `table.key`, and in arrays of tables of `table.key[0]` and
    /// `table.key[0].inner`.
    places: BTreeMap<String, ValueOrigin>,
}

impl Document {
    /// Reads and parses `file`. A relative path starts at the current directory.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = regular::read_text(file).map_err(|source| ConfigError::Read {
            file: file.into(),
            looked_in: std::env::current_dir().unwrap_or_default(),
            source,
        })?;
        Self::parse(&text, file)
    }

    /// Parses `text`; `file` is its name in errors.
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
                ValueOrigin::Line {
                    file: file.into(),
                    line,
                },
            );
        };
        for (name, table) in spanned.get_ref() {
            note(name.get_ref().to_string(), name.span().start);
            for (key, value) in table.get_ref().as_table().into_iter().flatten() {
                let key_name = format!("{}.{}", name.get_ref(), key.get_ref());
                for (index, item) in value.get_ref().as_array().into_iter().flatten().enumerate() {
                    let Some(inner) = item.get_ref().as_table() else {
                        continue;
                    };
                    note(format!("{key_name}[{index}]"), item.span().start);
                    for key in inner.keys() {
                        let inner_name = format!("{key_name}[{index}].{}", key.get_ref());
                        note(inner_name, key.span().start);
                    }
                }
                note(key_name, key.span().start);
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
    /// If an override names a stage or a table of an array that the file does not have.
    pub fn with(mut self, overrides: &[Override]) -> Result<Self, ConfigError> {
        overrides.iter().try_for_each(|o| self.set(o))?;
        Ok(self)
    }

    fn set(&mut self, o: &Override) -> Result<(), ConfigError> {
        let file = self.file.display();
        if names::is_stage(&o.table) && !self.tables.contains_key(&o.table) {
            let message = format!("{file} has no [{}] table to set a key in", o.table);
            return Err(o.refused(message));
        }
        let name = format!("{}.{}", o.table, o.key);
        let place = ValueOrigin::Override(o.text.clone());
        let given = self.places.entry(o.table.clone());
        given.or_insert_with(|| place.clone());
        let table = self.tables.entry(o.table.clone());
        let table = table.or_insert_with(|| Value::Table(Table::new()));
        // A value that is not a table is reported when the names of the tables are checked.
        let Some(entries) = table.as_table_mut() else {
            self.places.insert(name, place);
            return Ok(());
        };
        match &o.within {
            Within::Whole => {
                entries.insert(o.key.clone(), o.value.clone());
                self.replace_places(name, &o.value, place);
            }
            Within::Part(part) => {
                set_part(entries, o, part).map_err(|count| {
                    o.refused(format!(
                        "{name} is a list (of {count} in {file}); give an index, counted from 0, \
                         for example --set {name}[0].{part}=… or --set {name}.0.{part}=…"
                    ))
                })?;
                self.places.insert(name, place);
            }
            Within::Item(index, part) => {
                set_item(entries, o, *index, part).map_err(|count| {
                    o.refused(format!(
                        "{file} has {count} tables [[{name}]], counted from 0"
                    ))
                })?;
                self.places.insert(format!("{name}[{index}].{part}"), place);
            }
        }
        Ok(())
    }

    /// Gives `place` to the key called `name` and to all tables and keys inside its new value.
    fn replace_places(&mut self, name: String, value: &Value, place: ValueOrigin) {
        let old = format!("{name}[");
        self.places.retain(|inner, _| !inner.starts_with(&old));
        let inner = parts(&name, value).into_iter().chain([name]);
        self.places.extend(inner.map(|name| (name, place.clone())));
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

    /// Whether `table.key` was given, in the file or as an override.
    pub fn typed(&self, table: &str, key: &str) -> bool {
        self.places.contains_key(&format!("{table}.{key}"))
    }

    /// Origin of `table.key`; [`ValueOrigin::Default`] if it was not given.
    pub fn place(&self, table: &str, key: &str) -> ValueOrigin {
        self.places
            .get(&format!("{table}.{key}"))
            .cloned()
            .unwrap_or(ValueOrigin::Default)
    }

    /// Line or override of the table; line 1 of the file if it was not given.
    pub fn table_place(&self, table: &str) -> ValueOrigin {
        let top = || ValueOrigin::Line {
            file: self.file.clone(),
            line: 1,
        };
        self.places.get(table).cloned().unwrap_or_else(top)
    }
}

/// Sets `part` in the table that the key's value is.
///
/// # Errors
/// The length of the value, if it is a list.
fn set_part(entries: &mut Table, o: &Override, part: &str) -> Result<(), usize> {
    match entries.get_mut(&o.key) {
        Some(Value::Array(items)) => return Err(items.len()),
        Some(Value::Table(table)) => drop(table.insert(part.to_owned(), o.value.clone())),
        _ => {
            let table = Table::from_iter([(part.to_owned(), o.value.clone())]);
            entries.insert(o.key.clone(), Value::Table(table));
        }
    }
    Ok(())
}

/// Sets `part` in one table of the array that the key's value is.
///
/// # Errors
/// The number of tables, if there is none of this index.
fn set_item(entries: &mut Table, o: &Override, index: usize, part: &str) -> Result<(), usize> {
    let array = entries.get_mut(&o.key).and_then(Value::as_array_mut);
    let count = array.as_ref().map_or(0, |array| array.len());
    let item = array.and_then(|array| array.get_mut(index)?.as_table_mut());
    let table = item.ok_or(count)?;
    table.insert(part.to_owned(), o.value.clone());
    Ok(())
}

/// Names of the tables in an array, and of their keys.
fn parts(name: &str, value: &Value) -> Vec<String> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let tables = items.iter().enumerate();
    let tables = tables.filter_map(|(index, item)| Some((index, item.as_table()?)));
    let parts = tables.flat_map(|(index, table)| {
        let table_name = format!("{name}[{index}]");
        let keys: Vec<_> = table
            .keys()
            .map(|key| format!("{table_name}.{key}"))
            .collect();
        std::iter::once(table_name).chain(keys)
    });
    parts.collect()
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
        assert_eq!(document.place("ppo", "lam"), ValueOrigin::Default);
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
