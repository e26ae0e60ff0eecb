//! The units of lengths and repetitions.

use crate::config::Unit;
use crate::reward::RewardInput;

/// Number of units in the completion.
pub fn count(completion: &RewardInput, unit: Unit) -> usize {
    match unit {
        Unit::Tokens => completion.response.len(),
        Unit::Words => completion.text.split_whitespace().count(),
        Unit::Characters => completion.text.chars().count(),
    }
}
