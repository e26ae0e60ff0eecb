//! Where scores come from: a reward model that reads token ids, and rules that read text.

mod lexicon;
mod model;

pub use lexicon::{Lexicon, LexiconError, Valence};
pub use model::RewardModel;
