//! Rules: scores computed from text, tokens and the record's answer, without a model.

mod answer;
mod exact;
mod json;
mod length;
mod numeric;
mod pattern;
mod repetition;
mod units;

pub use exact::ExactRule;
pub use json::JsonRule;
pub use length::LengthRule;
pub use numeric::NumericRule;
pub use pattern::PatternRule;
pub use repetition::{RepetitionRule, repeated};

/// The scores for passing and failing a rule.
#[derive(Clone, Copy, Debug)]
struct RuleScores {
    pass: f64,
    fail: f64,
}

impl RuleScores {
    fn of(self, holds: bool) -> f32 {
        let score = if holds { self.pass } else { self.fail };
        score as f32
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use crate::reward::{RewardBatch, RewardInput, Scorer};

    /// Scores one completion, given by text, tokens and record.
    pub fn score_of(reward: &dyn Scorer, text: &str, tokens: &[u32], record: &Value) -> f32 {
        let empty = Map::new();
        let completion = RewardInput {
            prompt: "a prompt",
            text,
            ids: tokens,
            states: None,
            response: tokens.to_vec(),
            fields: record.as_object().unwrap_or(&empty),
        };
        let batch = RewardBatch {
            completions: &[completion],
            pass_tokens: 1,
        };
        let scores = reward.scores(&batch).unwrap();
        assert_eq!(scores.len(), 1);
        scores[0]
    }
}
