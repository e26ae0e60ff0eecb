//! What the tests of rewards score: completions of texts alone.

use serde_json::Map;

use super::{RewardBatch, RewardError, RewardInput, Scorer};

/// The scores of these texts, each the answer to one prompt without tokens.
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
