//! Repetition penalty: minus the share of n-grams that occur earlier in the completion.
//!
//! The share is 1 − distinct-n (Li et al. 2016, "A diversity-promoting objective function", §5.1)
//! of one text; it is 0 for a completion shorter than n.

use std::collections::HashSet;
use std::hash::Hash;

use crate::config::{RepetitionReward, TextUnit};
use crate::reward::{RewardBatch, RewardError, RewardInput, Scorer};

/// Scores a completion by its repeated n-grams.
pub struct RepetitionRule {
    ngram: usize,
    unit: TextUnit,
}

impl RepetitionRule {
    /// The rule with these settings.
    pub fn new(config: &RepetitionReward) -> Self {
        Self {
            ngram: config.ngram,
            unit: config.unit,
        }
    }

    fn score(&self, completion: &RewardInput) -> f32 {
        let text = completion.text;
        let repeated = match self.unit {
            TextUnit::Tokens => repeated(&completion.response, self.ngram),
            TextUnit::Words => repeated(&text.split_whitespace().collect::<Vec<_>>(), self.ngram),
            TextUnit::Characters => repeated(&text.chars().collect::<Vec<_>>(), self.ngram),
        };
        (0.0 - repeated) as f32
    }
}

impl Scorer for RepetitionRule {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        Ok(batch.completions.iter().map(|c| self.score(c)).collect())
    }
}

/// Share of n-grams that occur earlier in `units`, 0 if there is no n-gram. Over tokens it is
/// seq-rep-n (Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training").
pub fn repeated<T: Eq + Hash>(units: &[T], n: usize) -> f64 {
    let (mut all, mut distinct) = (0, HashSet::new());
    for ngram in units.windows(n) {
        all += 1;
        distinct.insert(ngram);
    }
    (all - distinct.len()) as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::tests::score_of;
    use super::*;

    fn score(ngram: usize, unit: TextUnit, text: &str, tokens: &[u32]) -> f32 {
        let rule = RepetitionRule::new(&RepetitionReward { ngram, unit });
        score_of(&rule, text, tokens, &Value::Null)
    }

    #[test]
    fn repeated_runs_of_tokens() {
        assert_eq!(repeated(&[1, 2, 3, 4, 5], 4), 0.0);
        // 1212, 2121, 1212, 2121, 1212: two different ones of five.
        assert_eq!(repeated(&[1, 2, 1, 2, 1, 2, 1, 2], 4), 0.6);
        assert_eq!(repeated(&[7; 8], 4), 0.8);
        assert_eq!(repeated(&[7; 3], 4), 0.0);
        assert_eq!(repeated::<u32>(&[], 4), 0.0);
    }

    #[test]
    fn repeated_n_grams_are_counted_once_less() {
        // ab bc ca ab bc: 5 bigrams, 3 different.
        assert_eq!(score(2, TextUnit::Words, "a b c a b c", &[]), -0.4);
        assert_eq!(score(2, TextUnit::Characters, "abcabc", &[]), -0.4);
        assert_eq!(score(2, TextUnit::Tokens, "", &[7, 8, 9, 7, 8, 9]), -0.4);
        assert_eq!(score(1, TextUnit::Words, "no no no no", &[]), -0.75);
        assert_eq!(score(3, TextUnit::Words, "a b c d", &[]), 0.0);
        assert_eq!(score(3, TextUnit::Words, "a b", &[]), 0.0);
        assert_eq!(score(3, TextUnit::Words, "", &[]), 0.0);
    }
}
