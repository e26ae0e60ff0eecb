//! Writes structures of the configuration as TOML, and lists the names of their keys.

use serde::Serialize;
use toml::Table;

use super::error::ConfigError;

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
