//! Floats in a checkpoint's JSON, for `#[serde(with = "…")]`. JSON has no NaN and no infinities:
//! these are written as strings, where `serde_json` alone would write null, which cannot be read
//! back.

use std::num::ParseFloatError;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A float that is read back with its value, NaN and infinities included.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
struct Float(f64);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Name(String),
}

impl From<Float> for Written {
    fn from(Float(value): Float) -> Self {
        match value.is_finite() {
            true => Self::Number(value),
            false => Self::Name(value.to_string()),
        }
    }
}

impl TryFrom<Written> for Float {
    type Error = ParseFloatError;

    fn try_from(written: Written) -> Result<Self, ParseFloatError> {
        match written {
            Written::Number(value) => Ok(Self(value)),
            Written::Name(name) => name.parse().map(Self),
        }
    }
}

/// Writes a float.
///
/// # Errors
/// The errors of `serializer`.
pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    Float(*value).serialize(serializer)
}

/// Reads a float.
///
/// # Errors
/// If the value is neither a number nor the name of one.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Float::deserialize(deserializer)?.0)
}

/// A float that may be missing.
pub mod option {
    use super::*;

    /// Writes the float, or null.
    ///
    /// # Errors
    /// The errors of `serializer`.
    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(Float).serialize(serializer)
    }

    /// Reads a float, or null.
    ///
    /// # Errors
    /// If there is another thing.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f64>, D::Error> {
        Ok(Option::<Float>::deserialize(deserializer)?.map(|float| float.0))
    }
}

/// Floats by name.
pub mod map {
    use std::collections::BTreeMap;

    use super::*;

    /// Writes the map as a JSON object.
    ///
    /// # Errors
    /// The errors of `serializer`.
    pub fn serialize<S: Serializer>(
        values: &BTreeMap<String, f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(values.iter().map(|(name, value)| (name, Float(*value))))
    }

    /// Reads the map from a JSON object.
    ///
    /// # Errors
    /// If there is another thing, or a value is no float.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let values = BTreeMap::<String, Float>::deserialize(deserializer)?;
        Ok(values
            .into_iter()
            .map(|(name, float)| (name, float.0))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Held {
        #[serde(with = "super")]
        one: f64,
        #[serde(with = "super::option")]
        perhaps: Option<f64>,
        #[serde(with = "super::map")]
        named: BTreeMap<String, f64>,
    }

    #[test]
    fn every_float_comes_back_as_it_was() {
        for value in [
            0.1 + 0.2,
            -0.0,
            3.0,
            f64::MAX,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ] {
            let held = Held {
                one: value,
                perhaps: Some(value),
                named: BTreeMap::from([("a".to_owned(), value)]),
            };
            let text = serde_json::to_string(&held).unwrap();
            let read: Held = serde_json::from_str(&text).unwrap();
            for found in [read.one, read.perhaps.unwrap(), read.named["a"]] {
                assert_eq!(found.to_bits(), value.to_bits(), "{text}");
            }
        }
        let missing = r#"{"one": 1, "perhaps": null, "named": {}}"#;
        let read: Held = serde_json::from_str(missing).unwrap();
        assert_eq!((read.one, read.perhaps), (1.0, None));
    }

    #[test]
    fn what_is_no_float_is_refused() {
        for text in ["null", "\"high\"", "[1.0]"] {
            let held = format!(r#"{{"one": {text}, "perhaps": null, "named": {{}}}}"#);
            assert!(serde_json::from_str::<Held>(&held).is_err(), "{text}");
        }
    }
}
