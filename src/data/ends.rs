//! Stop ids and stop texts, which end a completion.
//!
//! A completion ends at the token that completes a stop text: the ids include it, the text does
//! not. A stop text that is complete before the completion may end (`min_new_tokens`) is ordinary
//! text.
//!
//! Special tokens have no text here, so a stop text with the name of a special token among other
//! text never matches. A stop text that is only the name of a special token stops at that token.

use super::error::Result;
use super::tokenizer::Tokenizer;

/// Largest number of tokens without text inside a stop text.
const SILENT_TOKENS: usize = 8;

/// The stop ids and stop texts of a completion.
#[derive(Debug, Clone)]
pub struct Ends {
    ids: Vec<u32>,
    texts: Vec<String>,
    /// Number of last tokens that can be part of a stop text: each token that has text adds at
    /// least one byte.
    tail: usize,
}

impl Ends {
    /// Ends at these ids only; no tokenizer is needed.
    pub fn at_ids(ids: Vec<u32>) -> Self {
        Self {
            ids,
            texts: Vec::new(),
            tail: 0,
        }
    }

    /// Ends at these ids and at the texts `stop`.
    pub fn new(ids: Vec<u32>, stop: &[String], tokenizer: &Tokenizer) -> Self {
        let mut ends = Self::at_ids(ids);
        for text in stop {
            let id = tokenizer.token_id(text);
            match id.filter(|&id| tokenizer.is_special(id)) {
                Some(id) => ends.ids.push(id),
                None => ends.texts.push(text.clone()),
            }
        }
        ends.tail = stop.iter().map(String::len).max().unwrap_or(0) + SILENT_TOKENS;
        ends
    }

    /// The ids that end a completion.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Whether there are stop texts.
    pub fn has_texts(&self) -> bool {
        !self.texts.is_empty()
    }

    /// Whether the last of the generated tokens completes a stop text. The cost does not grow with
    /// the number of tokens.
    pub fn completed(&self, tokenizer: &Tokenizer, generated: &[u32]) -> bool {
        let tail = &generated[generated.len().saturating_sub(self.tail)..];
        let stop = tokenizer.decode_inside(tail);
        let stop = stop.and_then(|text| self.last_stop(tokenizer, tail, &text));
        // Ids that cannot be decoded contain no stop text.
        stop.is_ok_and(|at| at.is_some())
    }

    /// The text of a completion of `prompt` up to the stop text that ended it. A space between the
    /// prompt and the completion is the completion's first character.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the ids.
    pub fn text(
        &self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        completion: &[u32],
    ) -> Result<String> {
        let mut text = tokenizer.decode_inside(completion)?;
        if let Some(at) = self.last_stop(tokenizer, completion, &text)? {
            text.truncate(at);
        }
        let dummy = tokenizer.puts_space_at(tokenizer.place_after(prompt));
        if dummy && text.starts_with(' ') {
            text.remove(0);
        }
        Ok(text)
    }

    /// The byte at which the first stop text begins that the last id completes; `text` is the text
    /// of `ids`.
    fn last_stop(&self, tokenizer: &Tokenizer, ids: &[u32], text: &str) -> Result<Option<usize>> {
        let Some((_, earlier)) = ids.split_last() else {
            return Ok(None);
        };
        if !self.texts.iter().any(|stop| text.contains(stop)) {
            return Ok(None);
        }
        // Lengths cannot be compared: half a character decodes to a longer replacement character.
        let earlier = tokenizer.decode_inside(earlier)?;
        let completed = |stop: &String| starts(text, stop).nth(starts(&earlier, stop).count());
        Ok(self.texts.iter().filter_map(completed).min())
    }
}

/// The bytes at which `part` begins in `text`, overlapping occurrences included, so that the result
/// does not depend on the start of `text`.
fn starts<'t>(text: &'t str, part: &'t str) -> impl Iterator<Item = usize> + 't {
    let places = text.char_indices().map(|(at, _)| at);
    places.filter(move |&at| text[at..].starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::{BpeTraining, END_OF_TEXT};

    /// A token a byte, and the special tokens.
    fn bytes() -> Tokenizer {
        Tokenizer::train_bpe(&["a"], &BpeTraining::new(258)).unwrap()
    }

    fn ends(stop: &[&str], tokenizer: &Tokenizer) -> Ends {
        let stop: Vec<String> = stop.iter().map(|&text| text.to_owned()).collect();
        Ends::new(vec![0], &stop, tokenizer)
    }

    /// The lengths at which `text`, token by token, completes a stop text.
    fn completed(stop: &[&str], text: &str) -> Vec<usize> {
        let t = bytes();
        let (ends, ids) = (ends(stop, &t), t.encode_text(text).unwrap());
        let at = |&n: &usize| ends.completed(&t, &ids[..n]);
        (0..=ids.len()).filter(at).collect()
    }

    #[test]
    fn a_stop_text_counts_at_the_token_that_completes_it_each_time() {
        assert_eq!(completed(&["\n\n"], "a\n\nb\n\n"), [3, 6]);
        assert_eq!(completed(&["aa"], "aaaa"), [2, 3, 4]);
        assert_eq!(completed(&["é", "b"], "né b é"), [3, 5, 8]);
        assert_eq!(completed(&["x"], "abc"), [0; 0]);
    }

    /// Slow and plain: the whole text, token by token.
    #[test]
    fn the_tail_says_what_the_whole_text_says() {
        let text = "ab, abc — né, ababab né ab".repeat(3);
        let whole = |stop: &str| -> Vec<usize> {
            let ends = text.match_indices(stop);
            ends.map(|(at, _)| at + stop.len()).collect()
        };
        for stop in ["ab, abc — né", "né", "— ", "b, "] {
            assert_eq!(completed(&[stop], &text), whole(stop), "{stop:?}");
        }
    }

    #[test]
    fn the_text_leaves_out_the_stop_text_that_ended_it_and_no_earlier_one() {
        let t = bytes();
        let ends = ends(&["\n\n", "END"], &t);
        let text = |text: &str| {
            ends.text(&t, &[], &t.encode_rendered(text).unwrap())
                .unwrap()
        };
        assert_eq!(text("one\n\ntwo\n\n"), "one\n\ntwo");
        assert_eq!(text("one\n\ntwo END"), "one\n\ntwo ");
        assert_eq!(text("one\n\ntwo"), "one\n\ntwo");
        assert_eq!(text("one\n\n<|endoftext|>"), "one\n\n");
    }

    #[test]
    fn the_name_of_a_special_token_is_that_token() {
        let t = bytes();
        let ends = ends(&[END_OF_TEXT], &t);
        assert_eq!(ends.ids(), [0, t.eos_id().unwrap()]);
        assert!(!ends.has_texts());
    }
}
