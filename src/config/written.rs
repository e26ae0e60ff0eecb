//! Structures of the configuration from and to TOML, and the names of their keys.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::check::Checker;
use super::document::Document;
use super::error::ConfigError;

impl Document {
    /// Turns the table `name` into a `T`, untyped keys having `T`'s defaults.
    ///
    /// Unknown keys and values of a wrong type are reported to `checker` and left out of the `T`.
    pub fn lower<T>(&self, name: &str, checker: &mut Checker<'_>) -> Result<T, ConfigError>
    where
        T: Default + Serialize + DeserializeOwned,
    {
        let (known, values) = (key_names(&T::default())?, to_table(&T::default())?);
        match self.tables.get(name).and_then(Value::as_table) {
            Some(typed) => self.overlay(name, values, &known, typed, checker),
            None => self.overlay(name, values, &known, &Table::new(), checker),
        }
    }

    /// The tables of the array `table.key`, each with its name in errors, such as `ppo.rewards[0]`.
    pub(super) fn items(
        &self,
        table: &str,
        key: &str,
        checker: &mut Checker<'_>,
    ) -> Vec<(String, &Table)> {
        let Some(value) = self.tables.get(table).and_then(|table| table.get(key)) else {
            return Vec::new();
        };
        let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let tables: Vec<_> = items.iter().filter_map(Value::as_table).collect();
        if !value.is_array() || tables.len() != items.len() {
            let message =
                format!("must be an array of tables; write [[{table}.{key}]] above each of them");
            checker.table(table).misplaced(key, &message);
            return Vec::new();
        }
        let name = |(index, item)| (format!("{table}.{key}[{index}]"), item);
        tables.into_iter().enumerate().map(name).collect()
    }

    /// Overlays the table `typed`, called `name`, on the default `values`; see [`Document::lower`].
    pub(super) fn overlay<T: DeserializeOwned>(
        &self,
        name: &str,
        mut values: Table,
        known: &[String],
        typed: &Table,
        checker: &mut Checker<'_>,
    ) -> Result<T, ConfigError> {
        for (key, value) in typed {
            if !known.contains(key) {
                checker.unknown_key(name, key, known);
                continue;
            }
            // Each key is tried alone on top of the defaults, so that an error is its own.
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

/// Names of all keys of `value`, unset ones included.
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

/// `value` as a TOML table without unset keys, for which TOML has no value.
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
