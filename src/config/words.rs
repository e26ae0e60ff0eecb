//! Words of a configuration: the names that serde gives to the variants of an enum.

use serde::de::value::{Error, StrDeserializer};
use serde::{Deserialize, Serialize};

/// The word for `value`; empty if it is not a unit variant.
pub(super) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// The value of `word`, if it is one of the type's words.
pub fn from_word<'a, T: Deserialize<'a>>(word: &'a str) -> Option<T> {
    T::deserialize(StrDeserializer::<Error>::new(word)).ok()
}
