//! Where a reward model's score is read.

use std::str::FromStr;

use serde::de::IntoDeserializer;
use serde::de::value;
use serde::{Deserialize, Serialize};

/// The token at which a reward model's score is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreAt {
    /// The last token, with which the answer ends.
    Eos,
    /// The last token that is not the model's padding: the one before the end, where padding and end are one token.
    LastNonPad,
}

impl FromStr for ScoreAt {
    type Err = String;

    /// Reads what the key takes.
    fn from_str(text: &str) -> Result<Self, String> {
        let text: value::StrDeserializer<'_, value::Error> = text.into_deserializer();
        Self::deserialize(text).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::ScoreAt;
    use crate::config::tests::{refused, resolve};

    #[test]
    fn the_key_takes_two_words_and_is_unset_by_default() {
        let score_at = |overrides: &[&str]| resolve(overrides).unwrap().ppo.unwrap().score_at;
        assert_eq!(score_at(&[]), None);
        assert_eq!(score_at(&["ppo.score_at=eos"]), Some(ScoreAt::Eos));
        let found = score_at(&["ppo.score_at=last_non_pad"]);
        assert_eq!(found, Some(ScoreAt::LastNonPad));
        refused(&["ppo.score_at=last"], &["ppo.score_at", "last_non_pad"]);
        assert_eq!("last_non_pad".parse(), Ok(ScoreAt::LastNonPad));
        assert!("end".parse::<ScoreAt>().is_err());
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
