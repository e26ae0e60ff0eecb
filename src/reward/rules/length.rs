//! A rule on the length of the completion.

use super::units::count;
use crate::config::LengthReward;
use crate::reward::{RewardBatch, RewardError, Scorer};

/// Scores lengths by a window and a margin.
pub struct LengthRule(LengthReward);

impl LengthRule {
    /// The rule with these settings.
    pub fn new(config: &LengthReward) -> Self {
        Self(config.clone())
    }

    fn score(&self, length: usize) -> f32 {
        let below = self.0.min.unwrap_or(0).saturating_sub(length);
        let above = length.saturating_sub(self.0.max.unwrap_or(usize::MAX));
        // A length misses at most one side of the window. With a margin of 0 it misses it fully.
        let missed = below.max(above) as f64 / (self.0.margin as f64).max(f64::MIN_POSITIVE);
        (self.0.pass + (self.0.fail - self.0.pass) * missed.min(1.0)) as f32
    }
}

impl Scorer for LengthRule {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        let lengths = batch.completions.iter().map(|c| count(c, self.0.unit));
        Ok(lengths.map(|length| self.score(length)).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::tests::score_of;
    use super::*;
    use crate::config::TextUnit;

    fn scores(config: LengthReward, text: &str, tokens: &[u32]) -> [f32; 3] {
        [TextUnit::Tokens, TextUnit::Words, TextUnit::Characters].map(|unit| {
            let rule = LengthRule::new(&LengthReward {
                unit,
                ..config.clone()
            });
            score_of(&rule, text, tokens, &Value::Null)
        })
    }

    #[test]
    fn tokens_words_and_characters_are_counted() {
        let window = LengthReward {
            min: Some(3),
            max: Some(4),
            ..LengthReward::default()
        };
        // 5 tokens, 2 words, 4 characters.
        assert_eq!(scores(window, "ä bü", &[1; 5]), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn outside_the_window_the_score_falls_over_the_margin() {
        let window = LengthReward {
            min: Some(4),
            max: Some(6),
            margin: 4,
            pass: 1.0,
            fail: -1.0,
            ..LengthReward::default()
        };
        let score = |tokens: usize| scores(window.clone(), "", &vec![1; tokens])[0];
        let expected = [
            -1.0, -0.5, 0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, -0.5, -1.0, -1.0,
        ];
        assert_eq!((0..12).map(score).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn one_side_may_be_open() {
        let short = LengthReward {
            max: Some(1),
            ..LengthReward::default()
        };
        assert_eq!(scores(short, "one", &[1, 2]), [0.0, 1.0, 0.0]);
        let long = LengthReward {
            min: Some(2),
            ..LengthReward::default()
        };
        assert_eq!(scores(long, "one", &[1, 2]), [1.0, 0.0, 1.0]);
    }
}
