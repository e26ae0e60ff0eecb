//! What lengths and repetitions are counted in.

use crate::config::Unit;
use crate::reward::Completion;

/// How many units the completion has.
pub fn count(completion: &Completion, unit: Unit) -> usize {
    match unit {
        Unit::Tokens => completion.response.len(),
        Unit::Words => completion.text.split_whitespace().count(),
        Unit::Characters => completion.text.chars().count(),
    }
}
