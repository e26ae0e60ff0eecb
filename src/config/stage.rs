//! The stages of a run.

use std::fmt;

/// A stage of a run; the order is the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Next-token training on text.
    Pretrain,
    /// Training on answers.
    Sft,
    /// Tuning the policy on preferences, without a reward model.
    Dpo,
    /// The reward model.
    Reward,
    /// The reward model that only evaluations use.
    Judge,
    /// Tuning the policy.
    Ppo,
}

impl Stage {
    /// All stages in the order in which they run.
    pub const ALL: [Stage; 6] = [
        Stage::Pretrain,
        Stage::Sft,
        Stage::Dpo,
        Stage::Reward,
        Stage::Judge,
        Stage::Ppo,
    ];

    /// Name of the stage's table, command and folder.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Pretrain => "pretrain",
            Stage::Sft => "sft",
            Stage::Dpo => "dpo",
            Stage::Reward => "reward",
            Stage::Judge => "judge",
            Stage::Ppo => "ppo",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
