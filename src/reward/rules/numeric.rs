//! A rule that compares the last number of the completion with the record's.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

use super::RuleScores;
use super::answer::{Extract, answer};
use crate::config::NumericReward;
use crate::reward::{RewardBatch, RewardError, RewardInput, Scorer};

/// Digits with commas among them, a fraction, an exponent; the sign is found separately.
static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?").ok()
});

/// Compares numbers within a tolerance.
pub struct NumericRule {
    key: String,
    extract: Extract,
    tolerance: f64,
    outcome: RuleScores,
}

impl NumericRule {
    /// The rule with these settings.
    ///
    /// # Errors
    /// If `extract` does not compile.
    pub fn new(config: &NumericReward) -> Result<Self, RewardError> {
        Ok(Self {
            key: config.answer_key.clone(),
            extract: Extract::new(config.extract.as_deref())?,
            tolerance: config.tolerance,
            outcome: RuleScores {
                pass: config.pass,
                fail: config.fail,
            },
        })
    }

    fn right(&self, fields: &Map<String, Value>) -> Result<f64, String> {
        let text = answer(fields, &self.key)?;
        last_number(&text).ok_or_else(|| {
            format!(
                "field `{}` is \"{text}\", in which there is no number to compare with",
                self.key
            )
        })
    }

    fn score(&self, completion: &RewardInput) -> Result<f32, RewardError> {
        let right = self.right(completion.fields).map_err(RewardError::Record)?;
        let given = self.extract.find(completion.text).and_then(last_number);
        let holds = given.is_some_and(|given| (given - right).abs() <= self.tolerance);
        Ok(self.outcome.of(holds))
    }
}

impl Scorer for NumericRule {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        batch.completions.iter().map(|c| self.score(c)).collect()
    }

    fn check(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.right(fields).map(|_| ())
    }
}

/// The last number of a text. `1,234.5` is one number, `1,2` are two; a minus before it (or before
/// its currency sign) belongs to it unless it follows something that it may be subtracted from.
fn last_number(text: &str) -> Option<f64> {
    let found = NUMBER.as_ref()?.find_iter(text).last()?;
    let end = found.as_str().find(['.', 'e', 'E']);
    let (whole, fraction) = found.as_str().split_at(end.unwrap_or(found.len()));
    let groups: Vec<&str> = whole.split(',').collect();
    let (first, rest) = groups.split_first()?;
    let one = rest.is_empty() || (first.len() <= 3 && rest.iter().all(|group| group.len() == 3));
    let digits = if one {
        groups.concat()
    } else {
        rest.last()?.to_string()
    };
    let value: f64 = format!("{digits}{fraction}").parse().ok()?;
    let negative = one && is_negated(&text[..found.start()]);
    Some(if negative { -value } else { value })
}

/// Whether a number that follows this text is negative.
fn is_negated(before: &str) -> bool {
    let before = before.trim_end_matches(['$', '€', '£']);
    let Some(rest) = before.strip_suffix(['-', '\u{2212}']) else {
        return false;
    };
    let term = |c: char| c.is_ascii_digit() || c == ')' || c == ']';
    !rest.ends_with(char::is_alphanumeric) && !rest.trim_end_matches(' ').ends_with(term)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::score_of;
    use super::*;

    #[test]
    fn the_last_number_of_a_text() {
        let cases = [
            ("72", Some(72.0)),
            ("7 and then 8.", Some(8.0)),
            ("#### 1,234,567.5", Some(1_234_567.5)),
            ("one of 1,2", Some(2.0)),
            ("5, 6, 7,", Some(7.0)),
            ("12,34", Some(34.0)),
            ("= -3", Some(-3.0)),
            ("\u{2212}3", Some(-3.0)),
            ("loses -$4.50 a day", Some(-4.5)),
            ("the answer is -12", Some(-12.0)),
            ("10-3", Some(3.0)),
            ("10 -3", Some(3.0)),
            ("10 - 3 = 7", Some(7.0)),
            ("f(x)-3", Some(3.0)),
            ("1.5e3 m", Some(1500.0)),
            (".25", Some(0.25)),
            ("v1.2.3", Some(0.3)),
            ("007", Some(7.0)),
            ("is 5,.5", Some(0.5)),
            ("5\n-3", Some(-3.0)),
            ("none", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(last_number(text), expected, "{text:?}");
        }
    }

    #[test]
    fn numbers_are_compared_within_the_tolerance() {
        let rule = |extract: Option<&str>, tolerance| {
            NumericRule::new(&NumericReward {
                extract: extract.map(str::to_owned),
                tolerance,
                ..NumericReward::default()
            })
            .unwrap()
        };
        let gold = json!({"answer": "so 40 + 32.\n#### 72"});
        let plain = rule(None, 1e-6);
        assert_eq!(score_of(&plain, "It is 72.00", &[], &gold), 1.0);
        assert_eq!(score_of(&plain, "72 or 73", &[], &gold), 0.0);
        assert_eq!(score_of(&plain, "no number", &[], &gold), 0.0);
        let boxed = rule(Some(r"boxed\{([^}]*)\}"), 0.5);
        assert_eq!(score_of(&boxed, r"boxed{72.5} of 99", &[], &gold), 1.0);
        assert_eq!(score_of(&boxed, r"boxed{72.6}", &[], &gold), 0.0);
        assert_eq!(score_of(&boxed, "72", &[], &gold), 0.0);
        assert_eq!(score_of(&plain, "-5", &[], &json!({"answer": -5})), 1.0);
        let lacks = plain.check(json!({"answer": "x"}).as_object().unwrap());
        assert!(lacks.unwrap_err().contains("no number"));
    }
}
