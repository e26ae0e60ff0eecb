//! The token at which a reward model's score is read.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Token at which a reward model's score is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum ScoreAt {
    /// The last token, which ends the answer.
    Eos,
    /// The last token that is not the model's padding token.
    // If EOS is the padding token, this is the token before EOS.
    LastNonPad,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{refused, resolve};

    #[test]
    fn the_key_takes_two_words_and_is_unset_by_default() {
        let score_at = |overrides: &[&str]| resolve(overrides).unwrap().ppo.unwrap().score_at;
        assert_eq!(score_at(&[]), None);
        assert_eq!(score_at(&["ppo.score_at=eos"]), Some(ScoreAt::Eos));
        let found = score_at(&["ppo.score_at=last_non_pad"]);
        assert_eq!(found, Some(ScoreAt::LastNonPad));
        refused(&["ppo.score_at=last"], &["ppo.score_at", "last_non_pad"]);
        let flag = |word| ScoreAt::from_str(word, false);
        assert_eq!(flag("last_non_pad"), Ok(ScoreAt::LastNonPad));
        assert!(flag("end").is_err());
    }

    #[test]
    fn without_a_reward_model_and_a_judge_the_key_is_refused() {
        let rules = "ppo.rewards=[{ type = \"length\", max = 3 }]";
        refused(
            &[rules, "ppo.score_at=eos"],
            &["ppo.score_at", "[[ppo.rewards]]"],
        );
        let model = "ppo.rewards=[{ type = \"model\", path = \"m\", score_at = \"eos\" }]";
        assert!(resolve(&[model]).is_ok());
        let both = [
            rules,
            "ppo.score_at=eos",
            "ppo.judge_model=j",
            "ppo.eval_prompts=e",
        ];
        assert!(resolve(&both).is_ok());
    }
}
