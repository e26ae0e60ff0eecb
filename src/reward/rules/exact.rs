//! A rule that passes completions equal to the record's answer.

use serde_json::{Map, Value};

use super::RuleScores;
use super::answer::{Extract, answer};
use crate::config::ExactReward;
use crate::reward::{RewardBatch, RewardError, RewardInput, Scorer};

/// Compares texts, ignoring white space around them.
pub struct ExactRule {
    key: String,
    extract: Extract,
    outcome: RuleScores,
}

impl ExactRule {
    /// The rule with these settings.
    ///
    /// # Errors
    /// If `extract` does not compile.
    pub fn new(config: &ExactReward) -> Result<Self, RewardError> {
        Ok(Self {
            key: config.answer_key.clone(),
            extract: Extract::new(config.extract.as_deref())?,
            outcome: RuleScores {
                pass: config.pass,
                fail: config.fail,
            },
        })
    }

    fn score(&self, completion: &RewardInput) -> Result<f32, RewardError> {
        let right = answer(completion.fields, &self.key).map_err(RewardError::Record)?;
        let given = self.extract.find(completion.text);
        let holds = given.is_some_and(|given| given.trim() == right.trim());
        Ok(self.outcome.of(holds))
    }
}

impl Scorer for ExactRule {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        batch.completions.iter().map(|c| self.score(c)).collect()
    }

    fn check(&self, fields: &Map<String, Value>) -> Result<(), String> {
        answer(fields, &self.key).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::score_of;
    use super::*;

    #[test]
    fn texts_are_compared_without_spaces_around_them() {
        let rule = ExactRule::new(&ExactReward::default()).unwrap();
        let cases = [
            (" Paris\n", json!({"answer": "Paris "}), 1.0),
            ("paris", json!({"answer": "Paris"}), 0.0),
            ("Paris.", json!({"answer": "Paris"}), 0.0),
            ("12", json!({"answer": 12}), 1.0),
            ("", json!({"answer": ""}), 1.0),
        ];
        for (text, record, expected) in cases {
            assert_eq!(score_of(&rule, text, &[], &record), expected, "{text:?}");
        }
    }

    #[test]
    fn the_answer_is_extracted_and_scored_as_configured() {
        let rule = ExactRule::new(&ExactReward {
            answer_key: "label".into(),
            extract: Some(r"<a>(.*?)</a>".into()),
            pass: 2.0,
            fail: -1.0,
        })
        .unwrap();
        let record = json!({"label": "b"});
        let score = |text| score_of(&rule, text, &[], &record);
        assert_eq!(score("<a>a</a> no, <a> b </a>"), 2.0);
        assert_eq!(score("<a>b</a> no, <a>a</a>"), -1.0);
        assert_eq!(score("b"), -1.0);
        assert!(rule.check(&Map::new()).unwrap_err().contains("`label`"));
        assert!(rule.check(record.as_object().unwrap()).is_ok());
    }
}
