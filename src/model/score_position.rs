//! The token at which a reward model's score is read.
//!
//! transformers scores the rightmost token that is not `pad_token_id`. If the padding token also
//! ends sequences, as in folders that TRL writes for tokenizers without padding, the score is read
//! before the end token, which itself was never trained. Without a `pad_token_id` the score is read
//! at the last token. Sequences are never padded here, so only tokens at their own end are skipped.

use std::sync::Arc;

use super::hf_config::HfConfig;
use crate::config::ScoreAt;

/// The token of a sequence at which a reward model's score is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScorePosition {
    /// The token that is skipped at the end of a sequence.
    passed_over: Option<u32>,
}

/// The score should be read before padding, but the folder names no padding token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "score_at is \"last_non_pad\", but the model's folder names neither a pad_token_id nor an \
     eos_token_id; add one to its config.json, or set score_at = \"eos\""
)]
pub struct NoPadding;

impl ScorePosition {
    /// The position of the last token.
    pub const LAST: Self = Self { passed_over: None };

    /// The requested position, or the folder's own if none is requested.
    ///
    /// # Errors
    /// If [`ScoreAt::LastNonPad`] is requested for a folder without `pad_token_id` and
    /// `eos_token_id`.
    pub fn of(config: &HfConfig, asked: Option<ScoreAt>) -> Result<Self, NoPadding> {
        match asked.unwrap_or(config.score_at) {
            ScoreAt::Eos => Ok(Self::LAST),
            ScoreAt::LastNonPad => {
                // TRL pads with EOS if there is no other token.
                let decoder = &config.decoder;
                let pad = decoder
                    .pad_token_id
                    .or(decoder.eos_token_ids.first().copied());
                let passed_over = Some(pad.ok_or(NoPadding)?);
                Ok(Self { passed_over })
            }
        }
    }

    /// Index of the token in a sequence. As in transformers it is 0 if all tokens are padding.
    pub fn index(self, ids: &[u32]) -> usize {
        match self.passed_over {
            None => ids.len().saturating_sub(1),
            Some(pad) => ids.iter().rposition(|&id| id != pad).unwrap_or(0),
        }
    }

    /// The rows of these tokens in packed sequences.
    pub fn rows<'s>(self, sequences: impl IntoIterator<Item = &'s [u32]>) -> Arc<[u32]> {
        let mut start = 0;
        let row = |ids: &'s [u32]| {
            let row = start + self.index(ids);
            start += ids.len();
            row as u32
        };
        sequences.into_iter().map(row).collect()
    }

    /// The position in words, with the value of `score_at` that requests it.
    pub fn in_words(self) -> String {
        match self.passed_over {
            None => "at the last token (score_at = \"eos\")".to_owned(),
            Some(pad) => format!(
                "at the last token that is not {pad}, its padding (score_at = \"last_non_pad\")"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_at_the_end_is_passed_over_and_none_before_it() {
        let before = ScorePosition {
            passed_over: Some(2),
        };
        let found = |ids: &[u32]| (ScorePosition::LAST.index(ids), before.index(ids));
        assert_eq!(found(&[5, 6, 2]), (2, 1));
        assert_eq!(found(&[5, 2, 6, 2, 2]), (4, 2));
        assert_eq!(found(&[2, 5, 6]), (2, 2));
        assert_eq!(found(&[2, 2]), (1, 0));
        let packed: [&[u32]; 3] = [&[5, 6, 2], &[5], &[7, 2, 2]];
        assert_eq!(*ScorePosition::LAST.rows(packed), [2, 3, 6]);
        assert_eq!(*before.rows(packed), [1, 3, 4]);
    }
}
