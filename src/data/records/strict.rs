//! JSON values without duplicate keys, of which one value would be lost; records made of them, and
//! the error of text that is not JSON.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{Record, RecordSource};
use crate::data::error::{self, DataError};

/// A value whose objects have no duplicate keys.
pub(super) struct Strict(pub Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if fields.contains_key(&name) {
                return Err(A::Error::custom(format!("duplicate key `{name}`")));
            }
            let Strict(value) = entries.next_value()?;
            fields.insert(name, value);
        }
        Ok(Value::Object(fields))
    }
}

/// The record of a value, which must be an object.
pub(super) fn object(Strict(value): Strict, source: RecordSource) -> error::Result<Record> {
    match value {
        Value::Object(fields) => Ok(Record { fields, source }),
        other => Err(DataError::FieldType {
            at: source,
            field: "(whole record)".into(),
            found: super::names::type_name(&other),
            expected: "an object such as {\"prompt\": \"...\", \"completion\": \"...\"}",
        }),
    }
}

/// The error of text that is not JSON.
pub(super) fn malformed(
    path: &Path,
    line: usize,
    text: &str,
    error: &serde_json::Error,
) -> DataError {
    // serde's " at line 1 column 7" counts lines from the start of the parsed text; ours counts
    // from the start of the file.
    let words = error.to_string();
    let message = words.split(" at line ").next().unwrap_or(&words);
    let hint = match (error.is_eof(), text.trim() == "{") {
        (true, true) => "; an object must stand on one line, or the file must be one array",
        (true, false) => "; the line is cut short",
        _ => "",
    };
    DataError::Json {
        file: path.to_owned(),
        line,
        column: error.column(),
        message: format!("{message}{hint}"),
    }
}
