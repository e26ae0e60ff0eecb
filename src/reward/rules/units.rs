//! What lengths and repetitions are counted in.

use crate::config::Unit;
use crate::reward::RewardInput;

/// How many units the completion has.
pub fn count(completion: &RewardInput, unit: Unit) -> usize {
    match unit {
        Unit::Tokens => completion.response.len(),
        Unit::Words => completion.text.split_whitespace().count(),
        Unit::Characters => completion.text.chars().count(),
    }
}
