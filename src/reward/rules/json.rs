//! A rule that passes completions that are one JSON value with the required keys.

use serde_json::Value;

use super::RuleScores;
use super::answer::Extract;
use crate::config::JsonReward;
use crate::reward::{RewardBatch, RewardError, Scorer};

/// Parses JSON (RFC 8259).
pub struct JsonRule {
    extract: Extract,
    keys: Vec<String>,
    outcome: RuleScores,
}

impl JsonRule {
    /// The rule with these settings.
    ///
    /// # Errors
    /// If `extract` does not compile.
    pub fn new(config: &JsonReward) -> Result<Self, RewardError> {
        Ok(Self {
            extract: Extract::new(config.extract.as_deref())?,
            keys: config.keys.clone(),
            outcome: RuleScores {
                pass: config.pass,
                fail: config.fail,
            },
        })
    }

    fn holds(&self, text: &str) -> bool {
        let found = self.extract.find(text);
        let value = found.and_then(|found| serde_json::from_str::<Value>(found).ok());
        value.is_some_and(|value| self.keys.iter().all(|key| value.get(key).is_some()))
    }
}

impl Scorer for JsonRule {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        let score = |text| self.outcome.of(self.holds(text));
        Ok(batch.completions.iter().map(|c| score(c.text)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::score_of;
    use super::*;

    fn score(config: JsonReward, text: &str) -> f32 {
        score_of(&JsonRule::new(&config).unwrap(), text, &[], &Value::Null)
    }

    #[test]
    fn json_is_told_from_what_only_looks_like_it() {
        let valid = [
            "{}",
            " [1, 2.5e3, null]\n",
            "\"text\"",
            "{\"a\": {\"b\": []}}",
        ];
        let other = [
            "",
            "{'a': 1}",
            "{\"a\": 1,}",
            "[1] [2]",
            "{\"a\": NaN}",
            "so: {}",
        ];
        for text in valid {
            assert_eq!(score(JsonReward::default(), text), 1.0, "{text}");
        }
        for text in other {
            assert_eq!(score(JsonReward::default(), text), 0.0, "{text}");
        }
    }

    #[test]
    fn keys_and_a_place_may_be_asked_for() {
        let config = || JsonReward {
            extract: Some("(?s)```json(.*?)```".into()),
            keys: vec!["name".into(), "age".into()],
            pass: 0.5,
            fail: -1.0,
        };
        let block = |json: &str| format!("Here:\n```json\n{json}\n```\nDone.");
        let score = |text: &str| score(config(), text);
        assert_eq!(score(&block("{\"age\": null, \"name\": \"a\"}")), 0.5);
        assert_eq!(score(&block("{\"name\": \"a\"}")), -1.0);
        assert_eq!(score(&block("[\"name\", \"age\"]")), -1.0);
        assert_eq!(score("{\"age\": 1, \"name\": \"a\"}"), -1.0);
    }
}
