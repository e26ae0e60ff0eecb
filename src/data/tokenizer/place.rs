//! Encodes and decodes a span of a longer text.
//!
//! SentencePiece's tokenizers (Llama 2, Mistral 0.1, Zephyr) put a space, "▁", before a text: by a
//! normalizer (`Prepend`) or by a pre-tokenizer (`Metaspace`); byte-level ones with
//! `add_prefix_space` do the same. A span that continues other text must not get that space, or
//! "is" + " Paris" reads as "is  Paris". So the library's steps are done one by one here, with the
//! space where the library would put it in the whole text: before the text, and in some tokenizers
//! before each piece that follows an added token.
//!
//! Left out: an added token's flags `lstrip`, `rstrip` and `single_word` do not look across the
//! border of a span.

use serde_json::{Value, json};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{
    Decoder, Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer,
    Result, Tokenizer as Inner,
};

/// The context of a span of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextPosition {
    /// The span starts the text.
    Start,
    /// The span follows an added token, such as `</s>`.
    AfterToken {
        /// Whether the token is searched in normalized text, so that the texts before and after it
        /// are normalized together.
        normalized: bool,
    },
    /// The span follows other text.
    Inside,
}

/// A tokenizer's parts without the space that it puts before a text.
pub(super) struct DummyPrefix {
    normalizer: Option<NormalizerWrapper>,
    decoder: Option<DecoderWrapper>,
    /// True if a normalizer puts the space.
    prepends: bool,
    /// True if a pre-tokenizer puts the space, after added tokens too.
    always: bool,
}

impl DummyPrefix {
    /// The parts of `inner`; `None` if it puts no space before a text.
    ///
    /// # Errors
    /// A part that cannot be copied.
    pub fn of(inner: &Inner) -> serde_json::Result<Option<Self>> {
        let normalizer = serde_json::to_value(inner.get_normalizer())?;
        let (prepends, schemes) = (prepends(&normalizer), schemes(inner.get_pre_tokenizer()));
        if !prepends && schemes.iter().all(|s| *s == PrependScheme::Never) {
            return Ok(None);
        }
        let decoder = serde_json::to_value(inner.get_decoder())?;
        Ok(Some(Self {
            normalizer: serde_json::from_value(bare(normalizer))?,
            decoder: serde_json::from_value(bare(decoder))?,
            prepends,
            always: schemes.contains(&PrependScheme::Always),
        }))
    }

    /// The ids of `text` at `place`.
    pub fn encode(&self, inner: &Inner, text: &str, place: TextPosition) -> Result<Vec<u32>> {
        let normalizer = NormalizerAt {
            first: match place {
                TextPosition::Start | TextPosition::AfterToken { normalized: false } => {
                    inner.get_normalizer()
                }
                TextPosition::AfterToken { normalized: true } | TextPosition::Inside => {
                    self.normalizer.as_ref()
                }
            },
            later: inner.get_normalizer(),
        };
        let vocabulary = inner.get_added_vocabulary();
        let mut pieces = vocabulary.extract_and_normalize(Some(&normalizer), text);
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenize(pre_tokenizer, &mut pieces, place)?;
        }
        pieces.tokenize(|piece| inner.get_model().tokenize(piece.get()))?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids` without special tokens; a first space is kept.
    pub fn decode(&self, inner: &Inner, ids: &[u32]) -> Result<String> {
        let vocabulary = inner.get_added_vocabulary();
        let token = |&id: &u32| {
            let added = vocabulary.simple_id_to_token(id);
            let token = added.or_else(|| inner.get_model().id_to_token(id))?;
            (!vocabulary.is_special_token(&token)).then_some(token)
        };
        let tokens: Vec<String> = ids.iter().filter_map(token).collect();
        match &self.decoder {
            Some(decoder) => decoder.decode(tokens),
            None => Ok(tokens.join(" ")),
        }
    }

    /// Whether text at `place` is prefixed with a space.
    pub fn is_put_at(&self, place: TextPosition) -> bool {
        match place {
            TextPosition::Start => true,
            TextPosition::AfterToken { normalized } => {
                self.always || (self.prepends && !normalized)
            }
            TextPosition::Inside => false,
        }
    }
}

/// The normalizers of the text at the start of a span, and of the text after added tokens.
struct NormalizerAt<'a> {
    first: Option<&'a NormalizerWrapper>,
    later: Option<&'a NormalizerWrapper>,
}

impl Normalizer for NormalizerAt<'_> {
    fn normalize(&self, piece: &mut NormalizedString) -> Result<()> {
        let normalizer = match starts_span(piece) {
            true => self.first,
            false => self.later,
        };
        normalizer.map_or(Ok(()), |normalizer| normalizer.normalize(piece))
    }
}

fn starts_span(piece: &NormalizedString) -> bool {
    piece.offsets_original().0 == 0
}

/// The library's pre-tokenizer, with spaces put as in the whole text.
fn pre_tokenize(
    pre_tokenizer: &PreTokenizerWrapper,
    pieces: &mut PreTokenizedString,
    place: TextPosition,
) -> Result<()> {
    match pre_tokenizer {
        PreTokenizerWrapper::Sequence(parts) => {
            let parts = parts.as_ref().iter();
            let mut each = parts.map(|part| pre_tokenize(part, pieces, place));
            each.try_for_each(|done| done)
        }
        PreTokenizerWrapper::Metaspace(part) => {
            let mark = part.get_replacement();
            put_spaces(pieces, part.prepend_scheme, mark, place)?;
            Metaspace::new(mark, PrependScheme::Never, part.get_split()).pre_tokenize(pieces)
        }
        PreTokenizerWrapper::ByteLevel(part) => {
            put_spaces(pieces, byte_level_scheme(part), ' ', place)?;
            part.add_prefix_space(false).pre_tokenize(pieces)
        }
        other => other.pre_tokenize(pieces),
    }
}

fn put_spaces(
    pieces: &mut PreTokenizedString,
    scheme: PrependScheme,
    mark: char,
    place: TextPosition,
) -> Result<()> {
    pieces.normalize(|piece| {
        let wanted = match (scheme, starts_span(piece)) {
            (PrependScheme::Never, _) => false,
            (PrependScheme::First, first) => first && place == TextPosition::Start,
            (PrependScheme::Always, first) => !first || place != TextPosition::Inside,
        };
        if wanted && !piece.get().starts_with([' ', mark]) {
            piece.prepend(mark.encode_utf8(&mut [0; 4]));
        }
        Ok(())
    })
}

fn byte_level_scheme(part: &ByteLevel) -> PrependScheme {
    match part.add_prefix_space {
        true => PrependScheme::Always,
        false => PrependScheme::Never,
    }
}

/// The scheme by which each part of a pre-tokenizer puts spaces.
fn schemes(pre_tokenizer: Option<&PreTokenizerWrapper>) -> Vec<PrependScheme> {
    match pre_tokenizer {
        Some(PreTokenizerWrapper::Sequence(parts)) => {
            let parts = parts.as_ref().iter();
            parts.flat_map(|part| schemes(Some(part))).collect()
        }
        Some(PreTokenizerWrapper::Metaspace(part)) => vec![part.prepend_scheme],
        Some(PreTokenizerWrapper::ByteLevel(part)) => vec![byte_level_scheme(part)],
        _ => Vec::new(),
    }
}

/// True if a normalizer, as JSON, contains `Prepend`.
fn prepends(normalizer: &Value) -> bool {
    let parts = normalizer["normalizers"].as_array();
    normalizer["type"] == "Prepend" || parts.is_some_and(|parts| parts.iter().any(prepends))
}

/// A normalizer or decoder, as JSON, without the parts that apply only to the start of a text.
fn bare(mut part: Value) -> Value {
    for list in ["normalizers", "decoders"] {
        if let Some(parts) = part.get_mut(list).and_then(Value::as_array_mut) {
            let kept = std::mem::take(parts).into_iter().map(bare);
            *parts = kept.filter(|part| !part.is_null()).collect();
        }
    }
    let anchored = |pattern: &str| pattern.starts_with('^') || pattern.starts_with(r"\A");
    match part["type"].as_str() {
        Some("Prepend") => return Value::Null,
        Some("Replace") if part["pattern"]["Regex"].as_str().is_some_and(anchored) => {
            return Value::Null;
        }
        Some("Strip") if part.get("strip_left").is_some() => part["strip_left"] = json!(false),
        Some("Strip") => part["start"] = json!(0),
        Some("Metaspace") => part["prepend_scheme"] = json!("never"),
        _ => {}
    }
    part
}
