//! Completions of texts alone, for the tests of rewards.

use serde_json::Map;

use super::{RewardBatch, RewardError, RewardInput, Scorer};

/// Scores these texts, each as the completion of one prompt without tokens.
pub fn score_texts<T: AsRef<str>>(
    reward: &dyn Scorer,
    texts: &[T],
) -> Result<Vec<f32>, RewardError> {
    let fields = Map::new();
    let completion = |text| RewardInput {
        prompt: "a",
        text,
        ids: &[],
        states: None,
        response: Vec::new(),
        fields: &fields,
    };
    let completions: Vec<RewardInput> = texts.iter().map(|t| completion(t.as_ref())).collect();
    reward.scores(&RewardBatch {
        completions: &completions,
        pass_tokens: 1,
    })
}
