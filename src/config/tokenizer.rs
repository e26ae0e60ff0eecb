//! `[tokenizer]`: the tokenizer to read or to train.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Checker;
use super::optional_path;

/// The tokenizer to read, or the byte-level BPE to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenizerTable {
    /// A `tokenizer.json`, or a folder that holds one.
    ///
    /// Without it and without `model.from`, `[pretrain]` trains a byte-level BPE on its text.
    #[schemars(extend("x-type" = "path", "x-default" = "`model.from`'s"))]
    #[serde(default, deserialize_with = "optional_path")]
    pub from: Option<PathBuf>,
    /// Number of entries of a trained tokenizer, the 256 bytes and the special tokens included.
    pub vocab_size: usize,
    /// Special tokens of a trained tokenizer: the first ends a text (EOS), the second pads.
    pub special_tokens: Vec<String>,
    /// Jinja file of the chat template that a trained tokenizer gets.
    ///
    /// Name the tokens that it writes around a turn in `special_tokens`. A tokenizer that is read
    /// has its folder's template.
    #[schemars(extend("x-type" = "path"))]
    #[serde(default, deserialize_with = "optional_path")]
    pub chat_template: Option<PathBuf>,
}

impl Default for TokenizerTable {
    fn default() -> Self {
        Self {
            from: None,
            vocab_size: 2048,
            special_tokens: vec!["<|endoftext|>".into(), "<|pad|>".into()],
            chat_template: None,
        }
    }
}

impl TokenizerTable {
    /// Checks the keys; `trained` is whether `[pretrain]` trains the tokenizer.
    pub(super) fn check(&self, trained: bool, checker: &mut Checker<'_>) {
        let mut keys = checker.table("tokenizer");
        let specials = &self.special_tokens;
        let repeated = (1..specials.len()).any(|i| specials[..i].contains(&specials[i]));
        if specials.len() < 2 || repeated || specials.iter().any(String::is_empty) {
            let message = "needs at least two different, non-empty tokens: the first ends a text, \
                           the second pads; [\"<|endoftext|>\", \"<|pad|>\"] is usual";
            keys.wrong("special_tokens", format!("{specials:?}"), message);
        }
        keys.at_least(
            "vocab_size",
            self.vocab_size,
            256 + specials.len(),
            "every byte and special token takes one",
        );
        if let Some(file) = self.chat_template.as_ref().filter(|_| !trained) {
            let message = "has no effect: the tokenizer is read, and has the template of its \
                           folder; put the file there as chat_template.jinja";
            keys.wrong("chat_template", format!("\"{}\"", file.display()), message);
        }
    }
}
