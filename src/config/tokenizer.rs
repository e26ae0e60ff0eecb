//! `[tokenizer]`: the tokenizer to read, or the one to train.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Checker;
use super::optional_path;

/// The `[tokenizer]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tokenizer {
    /// `tokenizer.json` or a folder that holds it. When unset it is `model.from`'s; where the model
    /// starts from scratch, `pretrain` trains a byte-level BPE on its text.
    #[serde(default, deserialize_with = "optional_path")]
    pub from: Option<PathBuf>,
    /// Entries of a trained tokenizer, special tokens and the 256 bytes included.
    pub vocab_size: usize,
    /// Special tokens of a trained tokenizer. The first ends a text (EOS); the second fills (PAD).
    pub special_tokens: Vec<String>,
}

impl Default for Tokenizer {
    fn default() -> Self {
        Self {
            from: None,
            vocab_size: 2048,
            special_tokens: vec!["<|endoftext|>".into(), "<|pad|>".into()],
        }
    }
}

impl Tokenizer {
    pub(super) fn check(&self, checker: &mut Checker<'_>) {
        let mut keys = checker.table("tokenizer");
        let specials = &self.special_tokens;
        let repeated = (1..specials.len()).any(|i| specials[..i].contains(&specials[i]));
        if specials.len() < 2 || repeated || specials.iter().any(String::is_empty) {
            let message = "needs at least two different, non-empty tokens: the first ends a text, the second fills; \
                           [\"<|endoftext|>\", \"<|pad|>\"] is usual";
            keys.wrong("special_tokens", format!("{specials:?}"), message);
        }
        keys.at_least(
            "vocab_size",
            self.vocab_size,
            256 + specials.len(),
            "every byte and special token takes one",
        );
    }
}
