//! Training a byte-level BPE tokenizer (Sennrich et al. 2016; over bytes as in GPT-2, Radford et
//! al. 2019).
//!
//! The initial alphabet is the 256 bytes, so any UTF-8 text can be encoded and decoded without
//! loss. The result depends on the texts only: ties between merges are broken by ids, whatever the
//! number of threads.

use std::path::PathBuf;

use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::Tokenizer;
use super::files::{CONFIG, SPECIAL_TOKENS, TOKENIZER, TRAINED, TokenizerFiles};
use crate::data::error::{DataError, Result};

/// The usual token at the end of a text.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// The usual padding token.
pub const PAD: &str = "<|pad|>";
/// The token that opens a turn in ChatML.
pub const IM_START: &str = "<|im_start|>";
/// The token that closes a turn in ChatML.
pub const IM_END: &str = "<|im_end|>";

/// Settings of a BPE training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpeTraining {
    /// Largest number of entries, special tokens included; the texts may have fewer pairs to merge.
    pub vocab_size: usize,
    /// All special tokens, with ids from 0 in this order.
    pub special_tokens: Vec<String>,
    /// The special token that ends a sequence; with a chat template, the one that closes a turn.
    pub eos_token: String,
    /// The special token that pads; it never ends a sequence, so that the last token of a scored
    /// sequence is not mistaken for padding.
    pub pad_token: String,
    /// A chat template for the tokenizer's configuration.
    pub chat_template: Option<String>,
    /// File of the chat template, for messages.
    pub template_file: Option<PathBuf>,
}

impl BpeTraining {
    /// A vocabulary of this size with the two usual special tokens, [`END_OF_TEXT`] and [`PAD`].
    pub fn new(vocab_size: usize) -> Self {
        BpeTraining {
            vocab_size,
            special_tokens: vec![END_OF_TEXT.to_owned(), PAD.to_owned()],
            eos_token: END_OF_TEXT.to_owned(),
            pad_token: PAD.to_owned(),
            chat_template: None,
            template_file: None,
        }
    }

    fn has_special(&self, token: &str) -> bool {
        self.special_tokens.iter().any(|special| special == token)
    }
}

impl Tokenizer {
    /// Trains a byte-level BPE tokenizer on `texts`.
    ///
    /// # Errors
    /// If the vocabulary has no room for the 256 bytes and the special tokens, EOS and padding are
    /// not two of the special tokens, or there is no text.
    pub fn train_bpe(texts: &[&str], training: &BpeTraining) -> Result<Self> {
        check(texts, training)?;
        let special = training.special_tokens.iter();
        let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
            .vocab_size(training.vocab_size)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(special.map(|token| AddedToken::from(token, true)).collect())
            .build()
            .into();
        let byte_level = || ByteLevel::new(false, true, true);
        let mut inner = Inner::new(BPE::default());
        inner.with_pre_tokenizer(Some(byte_level()));
        inner.with_decoder(Some(byte_level()));
        inner.train(&mut trainer, texts.iter()).map_err(failed)?;
        let json = inner.to_string(true).map_err(failed)?;
        let mut files = TokenizerFiles::made(TRAINED, training.files(json)?);
        files.template_file.clone_from(&training.template_file);
        Self::from_files(files)
    }
}

impl BpeTraining {
    /// The three files that transformers' `AutoTokenizer` reads.
    fn files(&self, tokenizer_json: String) -> Result<Vec<(String, Vec<u8>)>> {
        let special = json!({"eos_token": self.eos_token, "pad_token": self.pad_token});
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
            "clean_up_tokenization_spaces": false,
        });
        if let Some(template) = &self.chat_template {
            config["chat_template"] = template.as_str().into();
        }
        let pretty = |value| serde_json::to_string_pretty(value).map_err(|e| failed(e.into()));
        let named = |name: &str, text: String| (name.to_owned(), (text + "\n").into_bytes());
        Ok(vec![
            named(TOKENIZER, tokenizer_json),
            named(CONFIG, pretty(&config)?),
            named(SPECIAL_TOKENS, pretty(&special)?),
        ])
    }
}

fn check(texts: &[&str], training: &BpeTraining) -> Result<()> {
    let least = 256 + training.special_tokens.len();
    let (eos, pad) = (&training.eos_token, &training.pad_token);
    let complaint = if training.vocab_size < least {
        format!(
            "vocab_size is {}; expected at least {least} (256 bytes and {} special tokens)",
            training.vocab_size,
            training.special_tokens.len()
        )
    } else if eos == pad || !training.has_special(eos) || !training.has_special(pad) {
        format!(
            "eos_token is {eos:?} and pad_token {pad:?}; expected two different ones of the \
             special tokens {:?}",
            training.special_tokens
        )
    } else if texts.iter().all(|text| text.is_empty()) {
        "there is no text to train on".to_owned()
    } else {
        return Ok(());
    };
    Err(DataError::Tokenizer {
        place: "(to be trained)".into(),
        message: complaint,
    })
}

fn failed(error: tokenizers::Error) -> DataError {
    DataError::Tokenizer {
        place: "(to be trained)".into(),
        message: format!("training failed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 2] = [
        "the cat sat on the mat; the hat sat",
        "\n\nthat cat, that mat — né",
    ];

    #[test]
    fn any_text_comes_back_whole() {
        let t = Tokenizer::train_bpe(&TEXTS, &BpeTraining::new(300)).unwrap();
        for text in [
            "the cat",
            "  two  spaces \n\n\ttab\r\n",
            "你好 🦀 né\u{0}\u{7f}",
            "e\u{301} ﷺ \u{200d}",
            "",
        ] {
            assert_eq!(t.decode(&t.encode_text(text).unwrap()).unwrap(), text);
        }
        let merged = t.encode_text(" the").unwrap();
        assert_eq!(merged.len(), 1, "a frequent word is one token");
    }

    #[test]
    fn the_result_depends_on_the_texts_alone() {
        let train = || {
            let t = Tokenizer::train_bpe(&TEXTS, &BpeTraining::new(300)).unwrap();
            t.files.tokenizer_json().unwrap().to_vec()
        };
        let one_thread = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        let several = rayon::ThreadPoolBuilder::new()
            .num_threads(3)
            .build()
            .unwrap();
        let first = one_thread.install(train);
        for _ in 0..3 {
            assert_eq!(first, several.install(train));
        }
    }

    #[test]
    fn special_tokens_come_first_and_padding_is_not_the_end() {
        let mut training = BpeTraining::new(300);
        training
            .special_tokens
            .extend([IM_START.into(), IM_END.into()]);
        training.eos_token = IM_END.into();
        training.chat_template = Some("{{ eos_token }}".into());
        let t = Tokenizer::train_bpe(&TEXTS, &training).unwrap();
        assert_eq!(
            (t.eos_id().unwrap(), t.pad_id(), t.bos_id()),
            (3, Some(1), None)
        );
        assert_eq!(t.token_id(END_OF_TEXT), Some(0));
        assert_eq!(t.chat_template(), Some("{{ eos_token }}"));
        assert!(t.vocab_size() <= 300 && t.vocab_size() > 260);
    }

    #[test]
    fn special_tokens_are_those_of_the_list_and_no_others() {
        let training = BpeTraining {
            special_tokens: vec!["<end>".into(), "<fill>".into()],
            eos_token: "<end>".into(),
            pad_token: "<fill>".into(),
            ..BpeTraining::new(258)
        };
        let t = Tokenizer::train_bpe(&TEXTS, &training).unwrap();
        assert_eq!((t.eos_id().unwrap(), t.pad_id()), (0, Some(1)));
        assert_eq!((t.token_id(END_OF_TEXT), t.token_id(PAD)), (None, None));
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refused = |training: &BpeTraining, texts: &[&str], part: &str| {
            let e = Tokenizer::train_bpe(texts, training)
                .unwrap_err()
                .to_string();
            assert!(e.contains(part), "{e}");
        };
        refused(&BpeTraining::new(200), &TEXTS, "at least 258");
        refused(
            &BpeTraining {
                eos_token: PAD.into(),
                ..BpeTraining::new(300)
            },
            &TEXTS,
            "two different ones",
        );
        refused(
            &BpeTraining {
                pad_token: "<fill>".into(),
                ..BpeTraining::new(300)
            },
            &TEXTS,
            "pad_token \"<fill>\"",
        );
        refused(&BpeTraining::new(300), &[""], "no text");
    }
}
