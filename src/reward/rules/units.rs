//! The units of lengths and repetitions.

use crate::config::TextUnit;
use crate::reward::RewardInput;

/// Number of units in the completion.
pub fn count(completion: &RewardInput, unit: TextUnit) -> usize {
    match unit {
        TextUnit::Tokens => completion.response.len(),
        TextUnit::Words => completion.text.split_whitespace().count(),
        TextUnit::Characters => completion.text.chars().count(),
    }
}
