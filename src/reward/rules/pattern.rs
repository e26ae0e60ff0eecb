//! A rule that passes completions in which a pattern is found.

use regex::Regex;

use super::RuleScores;
use super::answer::compile;
use crate::config::RegexReward;
use crate::reward::{RewardBatch, RewardError, Scorer};

/// Searches completions for a regular expression.
pub struct PatternRule {
    pattern: Regex,
    outcome: RuleScores,
}

impl PatternRule {
    /// The rule with these settings.
    ///
    /// # Errors
    /// If the pattern does not compile.
    pub fn new(config: &RegexReward) -> Result<Self, RewardError> {
        Ok(Self {
            pattern: compile(&config.pattern)?,
            outcome: RuleScores {
                pass: config.pass,
                fail: config.fail,
            },
        })
    }
}

impl Scorer for PatternRule {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        let found = |text| self.outcome.of(self.pattern.is_match(text));
        Ok(batch.completions.iter().map(|c| found(c.text)).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::tests::score_of;
    use super::*;

    #[test]
    fn a_pattern_is_found_or_not() {
        let rule = PatternRule::new(&RegexReward {
            pattern: r"(?s)^<think>.*</think>\S".into(),
            pass: 1.0,
            fail: -0.5,
        })
        .unwrap();
        let score = |text| score_of(&rule, text, &[], &Value::Null);
        assert_eq!(score("<think>a\nb</think>c"), 1.0);
        assert_eq!(score("<think>a</think> c"), -0.5);
        assert_eq!(score(" <think>a</think>c"), -0.5);
        assert_eq!(score(""), -0.5);
    }
}
