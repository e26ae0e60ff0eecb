//! The record's answer, and the answer in a completion.

use regex::Regex;
use serde_json::{Map, Value};

use crate::reward::RewardError;

/// Finds the answer in a completion.
#[derive(Debug)]
pub struct Extract(Option<Regex>);

impl Extract {
    /// Extracts by `pattern`; without one the whole completion is the answer.
    ///
    /// # Errors
    /// If the pattern does not compile.
    pub fn new(pattern: Option<&str>) -> Result<Self, RewardError> {
        Ok(Self(pattern.map(compile).transpose()?))
    }

    /// Group 1 of the last match, or the whole match if the pattern has no group; `None` without a
    /// match.
    pub fn find<'t>(&self, text: &'t str) -> Option<&'t str> {
        let Some(pattern) = &self.0 else {
            return Some(text);
        };
        let last = pattern.captures_iter(text).last()?;
        let group = usize::from(pattern.captures_len() > 1);
        last.get(group).map(|found| found.as_str())
    }
}

/// Compiles a pattern.
///
/// # Errors
/// If it is not a regular expression.
pub fn compile(pattern: &str) -> Result<Regex, RewardError> {
    Regex::new(pattern).map_err(|source| RewardError::Pattern {
        pattern: pattern.to_owned(),
        source: Box::new(source),
    })
}

/// The record's answer as text: a string unchanged, a number or boolean as in JSON.
///
/// # Errors
/// If the record has no answer or it has another type; in words.
pub fn answer(fields: &Map<String, Value>, key: &str) -> Result<String, String> {
    match fields.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(other) => Err(format!(
            "field `{key}` is {other}; the rule needs a text or a number to compare with"
        )),
        None => Err(format!(
            "no field `{key}` to compare with; add it to the record, or set answer_key to the \
             field that holds the answer"
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_match_counts_and_group_one_if_there_is_one() {
        let find = |pattern, text| Extract::new(pattern).unwrap().find(text).map(str::to_owned);
        assert_eq!(find(None, " all ").as_deref(), Some(" all "));
        assert_eq!(find(Some(r"\d+"), "1, then 23.").as_deref(), Some("23"));
        let boxed = Some(r"answer: (\w+)");
        assert_eq!(
            find(boxed, "answer: a, no, answer: b").as_deref(),
            Some("b")
        );
        assert_eq!(find(boxed, "no idea"), None);
        // The group takes no part in this match: there is no answer.
        assert_eq!(find(Some("x|(y)"), "x"), None);
    }

    #[test]
    fn answers_are_texts_numbers_and_truth_values() {
        let record = json!({"a": " 42 ", "b": 42, "c": true, "d": [1]});
        let of = |key| answer(record.as_object().unwrap(), key);
        assert_eq!(of("a"), Ok(" 42 ".into()));
        assert_eq!(of("b"), Ok("42".into()));
        assert_eq!(of("c"), Ok("true".into()));
        assert!(of("d").unwrap_err().contains("`d` is [1]"));
        assert!(of("e").unwrap_err().contains("no field `e`"));
    }
}
