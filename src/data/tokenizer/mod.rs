//! Text ↔ token ids by Hugging Face's `tokenizers`, with the special tokens and the chat template
//! of a model folder.
//!
//! A tokenizer keeps its files, loaded or trained. [`Tokenizer::save`] writes them byte for byte,
//! so that transformers' `AutoTokenizer` reads the same tokenizer.
//!
//! There are two ways to encode. [`Tokenizer::encode_text`] is for text of unknown origin
//! (pretraining documents): the name of a special token is ordinary text, so that a document cannot
//! end itself. [`Tokenizer::encode_rendered`] is for text of a user or a template: `<|im_end|>` is
//! the token, as in transformers. Neither adds tokens; those that the tokenizer puts before plain
//! text are [`Tokenizer::prefix`]. A span that continues other text is encoded by
//! [`Tokenizer::encode_at`], because many tokenizers put a space before a text, which must not be
//! inside it.
//!
//! Left out: slow (Python) tokenizers and SentencePiece files; transformers converts them to
//! `tokenizer.json`.

mod checks;
mod files;
mod llama;
mod place;
mod train;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use rayon::prelude::*;
use tokenizers::Tokenizer as Inner;

use super::error::{DataError, Result};
use super::template::ChatTemplate;
use crate::terminal::Phase;
pub use files::TEMPLATES;
use files::TokenizerFiles;
use place::DummyPrefix;
pub use place::TextPosition;
pub use train::{BpeTraining, END_OF_TEXT, IM_END, IM_START, PAD};

/// A tokenizer with its special tokens and its chat template.
pub struct Tokenizer {
    inner: Inner,
    /// The tokenizer that reads names of special tokens as text; built at the first use.
    plain: OnceLock<Inner>,
    files: TokenizerFiles,
    special_tokens: BTreeMap<String, String>,
    chat_template: Option<String>,
    prefix: Vec<u32>,
    dummy_prefix: Option<DummyPrefix>,
    vocab_size: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Tokenizer({}, {} tokens)",
            self.files.place, self.vocab_size
        )
    }
}

impl Tokenizer {
    /// Loads a model folder's tokenizer (`tokenizer.json` with, if there, `tokenizer_config.json`,
    /// `special_tokens_map.json` and `chat_template.jinja`), or a single `tokenizer.json`.
    ///
    /// # Errors
    /// If a folder or file is missing or cannot be read, with the remedy.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_files(TokenizerFiles::read(path.as_ref())?)
    }

    fn from_files(files: TokenizerFiles) -> Result<Self> {
        let inner = checks::load(&files)?;
        let special_tokens = files.special_tokens()?;
        for (name, token) in &special_tokens {
            if inner.token_to_id(token).is_none() {
                let message = format!(
                    "`{name}` is {token:?}, which is not in the vocabulary of tokenizer.json"
                );
                return Err(files.error(message));
            }
        }
        let chat_template = files.chat_template()?;
        let fail = |words: String| files.error(format!("cannot encode: {words}"));
        let prefix = checks::call(|| prefix(&inner)).map_err(fail)?;
        let dummy_prefix = DummyPrefix::of(&inner).map_err(|e| fail(e.to_string()))?;
        let vocab_size = inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |&id| id as usize + 1);
        let plain = OnceLock::new();
        Ok(Tokenizer {
            inner,
            plain,
            files,
            special_tokens,
            chat_template,
            prefix,
            dummy_prefix,
            vocab_size,
        })
    }

    /// Ids of plain text: names of special tokens are ordinary text, and no token is added.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(self.plain(), text)
    }

    /// Ids of text in which names of special tokens are those tokens; no token is added.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(&self.inner, text)
    }

    /// [`Tokenizer::encode_rendered`] of a span at `place` in a longer text. Joined to the ids
    /// before it, the ids are those of the whole text if the border falls between two of its
    /// tokens.
    pub fn encode_at(&self, text: &str, place: TextPosition) -> Result<Vec<u32>> {
        match &self.dummy_prefix {
            Some(dummy) if place != TextPosition::Start => {
                let ids = checks::call(|| dummy.encode(&self.inner, text, place));
                ids.map_err(|words| self.files.error(format!("cannot encode: {words}")))
            }
            _ => self.encode_rendered(text),
        }
    }

    /// [`Tokenizer::encode_text`] of many texts in parallel, in the order of the texts. Only the
    /// ids are kept: a whole encoding takes a hundred times the memory of the text.
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        let phase = Phase::counted("tokenizing", texts.len());
        let encode = |text: &&str| {
            phase.add(1);
            self.encode_text(text)
        };
        texts.par_iter().map(encode).collect()
    }

    /// Text of ids; special tokens are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        checks::call(|| self.inner.decode(ids, true))
            .map_err(|words| self.files.error(format!("cannot decode: {words}")))
    }

    /// Text of ids that continue other text; special tokens are left out. The space of the first
    /// token is kept; [`Tokenizer::decode`] drops it as the one that the tokenizer puts before a
    /// text.
    pub fn decode_inside(&self, ids: &[u32]) -> Result<String> {
        match &self.dummy_prefix {
            Some(dummy) => checks::call(|| dummy.decode(&self.inner, ids))
                .map_err(|words| self.files.error(format!("cannot decode: {words}"))),
            None => self.decode(ids),
        }
    }

    /// Position of a completion of `prompt` in its text. A prompt equal to [`Tokenizer::prefix`]
    /// has no text, so the completion starts the text.
    pub fn place_after(&self, prompt: &[u32]) -> TextPosition {
        match prompt == self.prefix {
            true => TextPosition::Start,
            false => self.place_in_text(prompt),
        }
    }

    /// Position of a span that follows the ids `before` in the same text.
    pub fn place_in_text(&self, before: &[u32]) -> TextPosition {
        let Some(last) = before.last() else {
            return TextPosition::Start;
        };
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added
            .get(last)
            .map_or(TextPosition::Inside, |token| TextPosition::AfterToken {
                normalized: token.normalized,
            })
    }

    /// True if the tokenizer puts a space before text at `place`.
    pub fn puts_space_at(&self, place: TextPosition) -> bool {
        let dummy = self.dummy_prefix.as_ref();
        dummy.is_some_and(|dummy| dummy.is_put_at(place))
    }

    /// Text of ids, special tokens by their names.
    pub fn decode_with_specials(&self, ids: &[u32]) -> Result<String> {
        checks::call(|| self.inner.decode(ids, false))
            .map_err(|words| self.files.error(format!("cannot decode: {words}")))
    }

    /// The end-of-sequence token (`eos_token`).
    ///
    /// # Errors
    /// If the tokenizer names no `eos_token`.
    pub fn eos_id(&self) -> Result<u32> {
        self.special_id("eos_token").ok_or_else(|| {
            self.files.error(
                "names no `eos_token`; add it to tokenizer_config.json, \
                 e.g. \"eos_token\": \"</s>\""
                    .into(),
            )
        })
    }

    /// The padding token (`pad_token`), if named.
    pub fn pad_id(&self) -> Option<u32> {
        self.special_id("pad_token")
    }

    /// The beginning-of-sequence token (`bos_token`), if named. Whether it precedes plain text is
    /// [`Tokenizer::prefix`].
    pub fn bos_id(&self) -> Option<u32> {
        self.special_id("bos_token")
    }

    /// The tokens that the tokenizer's post-processor puts before plain text: often BOS, often
    /// none.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Whether the id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special)
    }

    /// Whether the id is an added token, special or not: one outside the vocabulary of the
    /// tokenizer's model, or marked special in it.
    pub fn is_added(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.contains_key(&id)
    }

    /// The special tokens, ascending by id.
    pub fn special_ids(&self) -> Vec<u32> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special);
        let mut ids: Vec<u32> = special.map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// The name of a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The token of unknown text (`unk_token`), if named.
    pub fn unk_id(&self) -> Option<u32> {
        self.special_id("unk_token")
    }

    /// The tokenizer with another `pad_token`, in memory and in its files.
    ///
    /// # Errors
    /// An id that is no token, or a file of the tokenizer that cannot be read.
    pub fn padded_with(&self, id: u32) -> Result<Self> {
        let no_token = || self.files.error(format!("has no token {id} to pad with"));
        let token = self.token(id).ok_or_else(no_token)?;
        Self::from_files(self.files.with_pad(&token)?)
    }

    /// The id of a token by its name.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The lowest id whose tokens differ here and in `other`: the id, the token here, the token
    /// there.
    ///
    /// An id that only one of them has is no difference.
    pub fn first_difference(&self, other: &Tokenizer) -> Option<(u32, String, String)> {
        let both = |id| {
            Some((
                id,
                self.inner.id_to_token(id)?,
                other.inner.id_to_token(id)?,
            ))
        };
        let ids = 0..self.vocab_size.min(other.vocab_size) as u32;
        ids.filter_map(both).find(|(_, here, there)| here != there)
    }

    /// One more than the largest id: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The chat template's source, if there is one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// What to do where a chat template is needed and there is none.
    pub fn template_remedy(&self) -> &'static str {
        match self.files.place == files::TRAINED {
            true => "it is trained by this run: set tokenizer.chat_template to a Jinja file",
            false => "add `chat_template` to its tokenizer_config.json",
        }
    }

    /// The chat template, compiled, if there is one.
    ///
    /// # Errors
    /// A template that is not valid Jinja.
    pub fn compiled_template(&self) -> Result<Option<ChatTemplate>> {
        let Some(source) = self.chat_template.as_deref() else {
            return Ok(None);
        };
        let place = self.files.template_place();
        let named = |error: DataError| error.in_template(&format!("{place}: "));
        let template = ChatTemplate::new(source, self.special_tokens.clone()).map_err(named)?;
        let template = match self.files.tool_template()? {
            None => template,
            Some(source) => template.with_tool_use(&source).map_err(named)?,
        };
        Ok(Some(template.at(&place)))
    }

    /// Writes the tokenizer's files into `folder`, which is created if needed.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.files.write(folder.as_ref())
    }

    fn special_id(&self, name: &str) -> Option<u32> {
        self.special_tokens
            .get(name)
            .and_then(|token| self.inner.token_to_id(token))
    }

    fn plain(&self) -> &Inner {
        self.plain.get_or_init(|| {
            let mut plain = self.inner.clone();
            plain.set_encode_special_tokens(true);
            plain
        })
    }

    fn encode_with(&self, inner: &Inner, text: &str) -> Result<Vec<u32>> {
        let ids = checks::call(|| Ok(inner.encode_fast(text, false)?.get_ids().to_vec()));
        ids.map_err(|words| self.files.error(format!("cannot encode: {words}")))
    }
}

/// The ids that a tokenizer puts before the ids of a text when it adds special tokens.
fn prefix(inner: &Inner) -> tokenizers::Result<Vec<u32>> {
    let bare = inner.encode_fast("a", false)?.get_ids().to_vec();
    let full = inner.encode_fast("a", true)?.get_ids().to_vec();
    let start = full
        .windows(bare.len().max(1))
        .position(|window| window == bare)
        .unwrap_or(0);
    Ok(full[..start].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained() -> Tokenizer {
        Tokenizer::train_bpe(
            &["low lower lowest new newer newest"],
            &BpeTraining::new(280),
        )
        .unwrap()
    }

    #[test]
    fn special_names_are_tokens_only_in_rendered_text() {
        let t = trained();
        let eos = t.eos_id().unwrap();
        assert_eq!(
            t.encode_rendered("low<|endoftext|>").unwrap().last(),
            Some(&eos)
        );
        let plain = t.encode_text("low<|endoftext|>").unwrap();
        assert!(!plain.contains(&eos));
        assert_eq!(t.decode(&plain).unwrap(), "low<|endoftext|>");
        assert_eq!(
            t.encode_batch(&["low<|endoftext|>", "new"]).unwrap()[0],
            plain
        );
        assert!(t.is_special(eos) && !t.is_special(plain[0]));
    }

    #[test]
    fn decoding_names_or_leaves_out_special_tokens() {
        let t = trained();
        let ids = t.encode_rendered("new<|endoftext|>").unwrap();
        assert_eq!(t.decode(&ids).unwrap(), "new");
        assert_eq!(t.decode_with_specials(&ids).unwrap(), "new<|endoftext|>");
    }

    #[test]
    fn saved_files_are_the_loaded_ones_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        let t = trained();
        t.save(&first).unwrap();
        std::fs::write(first.join("chat_template.jinja"), "{{ eos_token }}").unwrap();
        let loaded = Tokenizer::load(&first).unwrap();
        loaded.save(&second).unwrap();
        for name in [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
        ] {
            let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
            assert_eq!(read(&first), read(&second), "{name}");
        }
        assert_eq!(loaded.chat_template(), Some("{{ eos_token }}"));
        assert_eq!(loaded.eos_id().unwrap(), t.eos_id().unwrap());
        assert_eq!(loaded.pad_id(), t.pad_id());
        assert_eq!(
            loaded.encode_text("lowest").unwrap(),
            t.encode_text("lowest").unwrap()
        );
        let file = Tokenizer::load(first.join("tokenizer.json")).unwrap();
        assert_eq!(file.eos_id().unwrap(), t.eos_id().unwrap());
    }

    #[test]
    fn a_bos_that_the_post_processor_adds_is_the_prefix() {
        let dir = tempfile::tempdir().unwrap();
        trained().save(dir.path()).unwrap();
        let path = dir.path().join("tokenizer.json");
        let mut json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json["post_processor"] = serde_json::json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|pad|>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|pad|>": {"id": "<|pad|>", "ids": [1], "tokens": ["<|pad|>"]}}
        });
        std::fs::write(&path, json.to_string()).unwrap();
        assert_eq!(Tokenizer::load(dir.path()).unwrap().prefix(), [1]);
        assert!(trained().prefix().is_empty());
    }

    #[test]
    fn missing_and_contradictory_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| Tokenizer::load(path).unwrap_err().to_string();
        let e = error(&dir.path().join("nowhere"));
        assert!(e.contains("nowhere") && e.contains("does not exist"), "{e}");
        let e = error(dir.path());
        assert!(e.contains("no tokenizer.json"), "{e}");
        trained().save(dir.path()).unwrap();
        std::fs::write(
            dir.path().join("tokenizer_config.json"),
            r#"{"eos_token": "</nope>"}"#,
        )
        .unwrap();
        let e = error(dir.path());
        assert!(e.contains("`eos_token`") && e.contains("</nope>"), "{e}");
        std::fs::write(
            dir.path().join("tokenizer_config.json"),
            r#"{"eos_token" 1}"#,
        )
        .unwrap();
        let e = error(dir.path());
        assert!(
            e.contains("tokenizer_config.json") && e.contains("line 1"),
            "{e}"
        );
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        assert!(error(dir.path()).contains("tokenizer.json cannot be read"));
    }
}
