//! Typed access to a JSON object, with errors that name the file and the key. `null` counts as
//! absent, as in transformers.

use std::path::Path;

use serde_json::{Map, Value};

use super::HfConfigError;

/// Largest number of characters of a wrong value in an error.
const SHOWN_CHARS: usize = 60;

/// A JSON object of a file. `within` is the path of keys to the object, with a final dot; empty for
/// the top level.
pub(super) struct JsonFields<'a> {
    file: &'a Path,
    within: String,
    map: &'a Map<String, Value>,
}

impl<'a> JsonFields<'a> {
    pub(super) fn new(file: &'a Path, map: &'a Map<String, Value>) -> Self {
        JsonFields {
            file,
            within: String::new(),
            map,
        }
    }

    pub(super) fn file(&self) -> &'a Path {
        self.file
    }

    /// The value of `key`; `None` if it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Every key with its value.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Whether `key` has the value null, which can differ in meaning from an absent key.
    pub(super) fn holds_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// The object under `key`; an empty one counts as absent, as in transformers.
    pub(super) fn object(&self, key: &str) -> Result<Option<JsonFields<'a>>, HfConfigError> {
        let object = self.read(key, "an object", Value::as_object)?;
        Ok(object.filter(|map| !map.is_empty()).map(|map| JsonFields {
            file: self.file,
            within: format!("{}{key}.", self.within),
            map,
        }))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, HfConfigError> {
        self.read(key, "a string", Value::as_str)
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, HfConfigError> {
        self.read(key, "a list of strings", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, HfConfigError> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, HfConfigError> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(super) fn required_number(&self, key: &str) -> Result<f64, HfConfigError> {
        self.number(key)?
            .ok_or_else(|| self.missing(key, "a number"))
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, HfConfigError> {
        self.read(key, "a whole number", |value| {
            value.as_u64()?.try_into().ok()
        })
    }

    pub(super) fn required_size(&self, key: &str) -> Result<usize, HfConfigError> {
        self.size(key)?
            .ok_or_else(|| self.missing(key, "a whole number"))
    }

    /// One token id; -1, which early Llama configurations use for "no such token", counts as
    /// absent.
    pub(super) fn token_id(&self, key: &str) -> Result<Option<u32>, HfConfigError> {
        let id = self.read(key, "a token id", as_token_id)?;
        Ok(id.flatten())
    }

    /// One token id or a list of token ids; empty if the key is absent.
    pub(super) fn token_ids(&self, key: &str) -> Result<Vec<u32>, HfConfigError> {
        let ids = self.read(
            key,
            "a token id or a list of token ids",
            |value| match value.as_array() {
                Some(list) => list.iter().map(as_token_id).collect(),
                None => Some(vec![as_token_id(value)?]),
            },
        )?;
        Ok(ids.into_iter().flatten().flatten().collect())
    }

    pub(super) fn missing(&self, key: &str, expected: &'static str) -> HfConfigError {
        HfConfigError::MissingKey {
            file: self.file.to_owned(),
            key: self.full_key(key),
            expected,
        }
    }

    /// The error that `key` has a value that the engine does not support.
    pub(super) fn unsupported(&self, key: &str, supported: impl Into<String>) -> HfConfigError {
        HfConfigError::Unsupported {
            file: self.file.to_owned(),
            key: self.full_key(key),
            found: self.shown(key),
            supported: supported.into(),
        }
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, HfConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let wrong_type = || HfConfigError::WrongType {
            file: self.file.to_owned(),
            key: self.full_key(key),
            found: self.shown(key),
            expected,
        };
        convert(value).map(Some).ok_or_else(wrong_type)
    }

    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.within)
    }

    /// The value of `key` as JSON, shortened to one line.
    fn shown(&self, key: &str) -> String {
        let text = self.map.get(key).unwrap_or(&Value::Null).to_string();
        match text.char_indices().nth(SHOWN_CHARS) {
            Some((cut, _)) => format!("{}...", &text[..cut]),
            None => text,
        }
    }
}

/// A token id; `Some(None)` for -1, and `None` for any other value.
fn as_token_id(value: &Value) -> Option<Option<u32>> {
    match value.as_i64()? {
        -1 => Some(None),
        id => u32::try_from(id).ok().map(Some),
    }
}
