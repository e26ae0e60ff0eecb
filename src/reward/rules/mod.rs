//! Rules: scores that need no model, by text, tokens and the record's own answer.

mod answer;
mod exact;
mod json;
mod length;
mod numeric;
mod pattern;
mod repetition;
mod units;

pub use exact::Exact;
pub use json::Json;
pub use length::Length;
pub use numeric::Numeric;
pub use pattern::Pattern;
pub use repetition::{Repetition, repeated};

/// The scores of a rule that holds or does not.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    pass: f64,
    fail: f64,
}

impl Outcome {
    fn of(self, holds: bool) -> f32 {
        let score = if holds { self.pass } else { self.fail };
        score as f32
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use crate::reward::{Batch, Completion, Reward};

    /// The score of one completion: its text, its tokens, and its record.
    pub fn score_of(reward: &dyn Reward, text: &str, tokens: &[u32], record: &Value) -> f32 {
        let empty = Map::new();
        let completion = Completion {
            prompt: "a prompt",
            text,
            ids: tokens,
            states: None,
            response: tokens.to_vec(),
            fields: record.as_object().unwrap_or(&empty),
        };
        let batch = Batch {
            completions: &[completion],
            pass_tokens: 1,
        };
        let scores = reward.scores(&batch).unwrap();
        assert_eq!(scores.len(), 1);
        scores[0]
    }
}
