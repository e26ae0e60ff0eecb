//! Checks of a `tokenizer.json` of unknown origin: a file with which the `tokenizers` crate would
//! take all memory is refused before the crate reads it, and its panics become errors.
//!
//! A normalizer may replace a character by a thousand, and the next one each of these by another
//! thousand. [`growth`] is the largest number of bytes that a chain of them makes of one byte. Ids
//! are bounded because the embedding has a row for each.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::Tokenizer as Inner;

use super::files::TokenizerFiles;
use crate::data::error::Result;
use crate::data::guard::{Bounds, quietly, watched};

/// Largest growth of the steps before the model, and of those of the decoder, in bytes per byte.
const GROWTH: f64 = 1000.0;
/// Largest number of copies of a text in the post-processor.
const COPIES: usize = 16;
/// Largest id of a token, plus one.
const IDS: usize = 1 << 24;

/// The parts of the file that are checked.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

/// Reads `tokenizer.json` without the truncation and padding that some published files carry.
///
/// # Errors
/// If the file cannot be read, or exceeds a bound.
pub(super) fn load(files: &TokenizerFiles) -> Result<Inner> {
    let rebuilt = files
        .rebuilt_json()?
        .map(|json| json.to_string().into_bytes());
    let bytes = match &rebuilt {
        Some(bytes) => bytes,
        None => files.tokenizer_json()?,
    };
    let fail = |words: String| files.error(format!("tokenizer.json cannot be read: {words}"));
    check(bytes).map_err(fail)?;
    let bounds = Bounds {
        seconds: 60,
        bytes: (1 << 30) + 64 * bytes.len(),
    };
    let bytes = bytes.to_vec();
    let inner = watched(bounds, move || {
        let mut inner = Inner::from_bytes(bytes)?;
        inner.with_truncation(None)?;
        inner.with_padding(None);
        // Encodes and decodes once, to find parts that fail at the first use.
        let encoding = inner.encode_fast("a", true)?;
        inner.decode(encoding.get_ids(), false)?;
        tokenizers::Result::Ok(inner)
    });
    let inner = inner.map_err(|excess| fail(format!("it {excess}; fetch it again")))?;
    let inner = inner.map_err(|e| fail(e.to_string()))?;
    check_ids(&inner).map_err(fail)?;
    Ok(inner)
}

/// Calls the `tokenizers` crate, whose panics become errors.
///
/// # Errors
/// The message of the panic, which follows "cannot encode: ".
pub(super) fn call<T>(
    work: impl FnOnce() -> tokenizers::Result<T>,
) -> std::result::Result<T, String> {
    match quietly(work) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(words) => Err(format!(
            "tokenizer.json contradicts itself ({words}); fetch it again"
        )),
    }
}

fn check(bytes: &[u8]) -> std::result::Result<(), String> {
    let parts: Parts = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let before = growth(&parts.normalizer)? * growth(&parts.pre_tokenizer)?;
    for (growth, part) in [(before, "normalizer"), (growth(&parts.decoder)?, "decoder")] {
        if growth > GROWTH {
            return Err(format!(
                "its {part} may make {growth:.0} bytes of one, more than {GROWTH}; it is broken, \
                 or made to harm"
            ));
        }
    }
    let copies = copies(&parts.post_processor);
    match copies > COPIES {
        true => Err(format!(
            "its post_processor repeats the text {copies} times, more than {COPIES}"
        )),
        false => Ok(()),
    }
}

/// The largest number of bytes that a chain makes of one: the product over its steps, which are
/// found at any depth of `part`.
fn growth(part: &Value) -> std::result::Result<f64, String> {
    match part {
        Value::Object(step) => step
            .values()
            .try_fold(step_growth(step)?, |product, inner| {
                Ok(product * growth(inner)?)
            }),
        Value::Array(steps) => steps
            .iter()
            .try_fold(1.0, |product, step| Ok(product * growth(step)?)),
        _ => Ok(1.0),
    }
}

/// The largest number of bytes that a step makes of one. Steps are recognised by their fields,
/// because `type` may be absent.
fn step_growth(step: &Map<String, Value>) -> std::result::Result<f64, String> {
    let text = |key: &str| step.get(key).and_then(Value::as_str);
    if let Some(map) = text("precompiled_charsmap") {
        return longest_replacement(map);
    }
    if let (Some(pattern), Some(content)) = (step.get("pattern"), text("content")) {
        return Ok(replaced(pattern, content.len()));
    }
    Ok(match text("type") {
        Some("ByteLevel") => 2.0,
        Some("Metaspace") => 4.0,
        _ => 1.0,
    })
}

/// Growth by replacing the matches of `pattern` by this many bytes.
fn replaced(pattern: &Value, bytes: usize) -> f64 {
    let least = match (pattern["String"].as_str(), pattern["Regex"].as_str()) {
        (Some(text), _) => text.len(),
        (_, Some(regex)) => shortest_match(regex),
        _ => 0,
    };
    match least {
        // The text is inserted before every character.
        0 => 1.0 + bytes as f64,
        least => (bytes as f64 / least as f64).max(1.0),
    }
}

/// Smallest number of bytes of a match of `regex`; 0 if it is not known.
fn shortest_match(regex: &str) -> usize {
    let parsed = regex_syntax::parse(regex).ok();
    parsed
        .and_then(|regex| regex.properties().minimum_len())
        .unwrap_or(0)
}

/// Bytes of the longest replacement in a SentencePiece character map: the size of a trie, the trie,
/// replacements that end in zeros.
fn longest_replacement(map: &str) -> std::result::Result<f64, String> {
    let broken = |why: &str| format!("the precompiled_charsmap of its normalizer {why}");
    let map = STANDARD
        .decode(map)
        .map_err(|e| broken(&format!("is not base64 ({e})")))?;
    let (size, rest) = map
        .split_first_chunk()
        .ok_or_else(|| broken("is cut short"))?;
    let size = u32::from_le_bytes(*size) as usize;
    if size < 4 || size > rest.len() {
        return Err(broken(&format!(
            "declares a trie of {size} bytes, and {} follow",
            rest.len()
        )));
    }
    let replacements = rest[size / 4 * 4..].split(|&byte| byte == 0);
    let longest = replacements.map(<[u8]>::len).max().unwrap_or(0);
    Ok(longest.max(1) as f64)
}

/// Number of times that the templates of a post-processor repeat the text.
fn copies(part: &Value) -> usize {
    let product = |parts: &mut dyn Iterator<Item = &Value>| {
        parts.fold(1usize, |product, part| product.saturating_mul(copies(part)))
    };
    match part {
        Value::Object(step) => match step.get("single").and_then(Value::as_array) {
            Some(pieces) => {
                let texts = pieces
                    .iter()
                    .filter(|piece| piece.get("Sequence").is_some());
                texts.count().max(1)
            }
            None => product(&mut step.values()),
        },
        Value::Array(steps) => product(&mut steps.iter()),
        _ => 1,
    }
}

fn check_ids(inner: &Inner) -> std::result::Result<(), String> {
    let vocabulary = inner.get_vocab(true);
    let largest = vocabulary.iter().max_by_key(|(_, id)| **id);
    match largest {
        Some((token, &id)) if id as usize >= IDS => Err(format!(
            "token {token:?} has the id {id}; ids below {IDS} are read"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
