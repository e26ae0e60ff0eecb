//! Records of more tokens than a sequence may have: refused, cut or left out, as the policy says.

use std::ops::AddAssign;

use super::{Encoder, Example, Pair, Prompt, nothing_to_learn};
use crate::config::TooLong;
use crate::data::error::{DataError, Result};
use crate::data::records::Record;

/// Most tokens of a sequence, with the words for it: only the caller knows which key sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Most tokens.
    pub tokens: usize,
    /// What sets it, for example `sft.max_length is 64`.
    pub words: String,
    /// How to move it, for example `raise sft.max_length`.
    pub mend: String,
}

impl Limit {
    /// No limit; records are then never too long.
    pub fn none() -> Self {
        Self {
            tokens: usize::MAX,
            words: String::new(),
            mend: String::new(),
        }
    }

    /// The same limit with one more thing to do about it.
    #[must_use]
    pub fn or(self, mend: &str) -> Self {
        Self {
            mend: format!("{} or {mend}", self.mend),
            ..self
        }
    }
}

/// What became of records that were too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TooLongCounts {
    /// Records whose end was cut.
    pub truncated: usize,
    /// Records left out.
    pub skipped: usize,
}

impl AddAssign for TooLongCounts {
    fn add_assign(&mut self, other: Self) {
        self.truncated += other.truncated;
        self.skipped += other.skipped;
    }
}

/// A record's fate, before the counts are drawn.
pub(super) enum Fate<T> {
    Whole(T),
    Truncated(T),
    Skipped,
}

const PROMPT: &str = "the prompt";

impl Encoder<'_> {
    pub(super) fn fit_prompt(&self, record: &Record, prompt: Prompt) -> Result<Fate<Prompt>> {
        match (prompt.ids.len() <= self.limit.tokens, self.policy) {
            (true, _) => Ok(Fate::Whole(prompt)),
            (false, TooLong::Skip) => Ok(Fate::Skipped),
            (false, _) => Err(self.too_long(record, PROMPT, prompt.ids.len())),
        }
    }

    pub(super) fn fit_example(
        &self,
        record: &Record,
        mut example: Example,
    ) -> Result<Fate<Example>> {
        // The first token of a row is predicted by nothing.
        if !example
            .answer
            .iter()
            .any(|answer| answer.end > answer.start.max(1))
        {
            return Err(nothing_to_learn(record));
        }
        let found = example.ids.len();
        if found <= self.limit.tokens {
            return Ok(Fate::Whole(example));
        }
        match self.policy {
            TooLong::Skip => return Ok(Fate::Skipped),
            TooLong::Error => return Err(self.too_long(record, "the record", found)),
            TooLong::Truncate => {}
        }
        let given = example.answer[0].start;
        if given.max(1) >= self.limit.tokens {
            return Err(self.too_long(record, PROMPT, given));
        }
        example.ids.truncate(self.limit.tokens);
        example
            .answer
            .retain(|answer| answer.start < self.limit.tokens);
        if let Some(last) = example.answer.last_mut() {
            last.end = last.end.min(self.limit.tokens);
        }
        Ok(Fate::Truncated(example))
    }

    pub(super) fn fit_pair(&self, record: &Record, mut pair: Pair) -> Result<Fate<Pair>> {
        let given = pair.prompt.len();
        let found = given + pair.chosen.len().max(pair.rejected.len());
        if found <= self.limit.tokens {
            return Ok(Fate::Whole(pair));
        }
        match self.policy {
            TooLong::Skip => return Ok(Fate::Skipped),
            TooLong::Error => {
                return Err(self.too_long(record, "the longer of prompt with answer", found));
            }
            TooLong::Truncate if given >= self.limit.tokens => {
                return Err(self.too_long(record, PROMPT, given));
            }
            TooLong::Truncate => {}
        }
        pair.chosen.truncate(self.limit.tokens - given);
        pair.rejected.truncate(self.limit.tokens - given);
        Ok(Fate::Truncated(pair))
    }

    fn too_long(&self, record: &Record, what: &'static str, found: usize) -> DataError {
        DataError::TooLong {
            at: record.source.clone(),
            what,
            found,
            limit: self.limit.words.clone(),
            mend: format!("shorten it, or {}", self.limit.mend),
        }
    }
}
