//! Policies for records that are too long: refuse, cut or leave out.
//!
//! An answer loses its end. A prompt loses its start, as in TRL, because the question comes last;
//! it keeps the tokens that the tokenizer puts before a text (BOS). A prompt with an answer is cut
//! only if it leaves the answer no room; the answer then has up to half of the limit, the default
//! share in TRL's trainers.

use std::ops::AddAssign;
use std::sync::atomic::Ordering;

use super::{Encoder, Example, Pair, Prompt, nothing_to_learn};
use crate::config::TooLong;
use crate::data::error::{DataError, Result};
use crate::data::records::Record;

/// The largest number of tokens of a sequence, and the key that sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Largest number of tokens.
    pub tokens: usize,
    /// The key and its value, for example `sft.max_length is 64`.
    pub words: String,
    /// How to change the limit, for example `raise sft.max_length`.
    pub mend: String,
}

impl Limit {
    /// No limit: no record is too long.
    pub fn none() -> Self {
        Self {
            tokens: usize::MAX,
            words: String::new(),
            mend: String::new(),
        }
    }

    /// The error of a prompt of `found` tokens that does not fit.
    pub fn refuse_prompt(&self, record: &Record, found: usize) -> DataError {
        self.refuse(record, PROMPT, found)
    }

    fn refuse(&self, record: &Record, what: &'static str, found: usize) -> DataError {
        DataError::TooLong {
            at: record.source.clone(),
            what,
            found,
            limit: self.words.clone(),
            mend: format!("shorten it, or {}", self.mend),
        }
    }

    /// The same limit with `mend` as another way to change it.
    #[must_use]
    pub fn or(self, mend: &str) -> Self {
        Self {
            mend: format!("{} or {mend}", self.mend),
            ..self
        }
    }

    /// The same limit with the other values of the stage's `too_long` as ways to change the
    /// outcome.
    #[must_use]
    pub fn or_other_policy(self, stage: &str, policy: TooLong) -> Self {
        let others = match policy {
            TooLong::Truncate => r#""skip""#,
            TooLong::Skip => r#""truncate""#,
            TooLong::Error => r#""truncate" or "skip""#,
        };
        self.or(&format!("set {stage}.too_long to {others}"))
    }
}

/// Counts of records that were too long: truncated or skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TooLongCounts {
    /// Number of records whose end was cut.
    pub truncated: usize,
    /// Number of records whose prompt lost its start.
    pub prompts_truncated: usize,
    /// Number of records that were left out.
    pub skipped: usize,
}

impl TooLongCounts {
    /// Counts a record by its outcome; returns the record unless it was skipped.
    pub(super) fn count<T>(&mut self, fate: LengthOutcome<T>) -> Option<T> {
        match fate {
            LengthOutcome::Whole(item) => return Some(item),
            LengthOutcome::Truncated(item) => {
                self.truncated += 1;
                return Some(item);
            }
            LengthOutcome::PromptTruncated(item) => {
                self.prompts_truncated += 1;
                return Some(item);
            }
            LengthOutcome::Skipped => self.skipped += 1,
        }
        None
    }
}

impl AddAssign for TooLongCounts {
    fn add_assign(&mut self, other: Self) {
        self.truncated += other.truncated;
        self.prompts_truncated += other.prompts_truncated;
        self.skipped += other.skipped;
    }
}

/// A record after the policy for long records was applied.
pub(super) enum LengthOutcome<T> {
    Whole(T),
    Truncated(T),
    PromptTruncated(T),
    Skipped,
}

/// Cuts the start of a prompt of more than `room` tokens, except the `prefix` that the tokenizer
/// puts before a text.
pub fn cut_start(ids: &mut Vec<u32>, prefix: &[u32], room: usize) {
    let kept = match ids.starts_with(prefix) && prefix.len() < room {
        true => prefix.len(),
        false => 0,
    };
    ids.drain(kept..ids.len() - (room - kept));
}

const PROMPT: &str = "the prompt";

impl Encoder<'_> {
    pub(super) fn fit_prompt(
        &self,
        record: &Record,
        mut prompt: Prompt,
    ) -> Result<LengthOutcome<Prompt>> {
        let room = self.limit.tokens;
        match (prompt.ids.len() <= room, self.policy) {
            (true, _) => Ok(LengthOutcome::Whole(prompt)),
            (false, TooLong::Skip) => Ok(LengthOutcome::Skipped),
            (false, TooLong::Truncate) if room > 0 => {
                self.cut_start(&mut prompt.ids, room);
                prompt.text = self.tokenizer.decode_with_specials(&prompt.ids)?;
                Ok(LengthOutcome::PromptTruncated(prompt))
            }
            (false, _) => Err(self.too_long(record, PROMPT, prompt.ids.len())),
        }
    }

    pub(super) fn fit_example(
        &self,
        record: &Record,
        mut example: Example,
    ) -> Result<LengthOutcome<Example>> {
        // No token predicts the first token of a row.
        if !example
            .answer
            .iter()
            .any(|answer| answer.end > answer.start.max(1))
        {
            return Err(nothing_to_learn(record));
        }
        let found = example.ids.len();
        if found <= self.limit.tokens {
            return Ok(LengthOutcome::Whole(example));
        }
        match self.policy {
            TooLong::Skip => return Ok(LengthOutcome::Skipped),
            TooLong::Error => return Err(self.too_long(record, "the record", found)),
            TooLong::Truncate => {}
        }
        let given = example.answer[0].start;
        let no_room = given.max(1) >= self.limit.tokens;
        if no_room {
            let room = self.prompt_room(record, given, example.answer[0].len())?;
            let mut prompt = example.ids[..given].to_vec();
            self.cut_start(&mut prompt, room);
            let gone = given - prompt.len();
            example.ids.splice(..given, prompt);
            for answer in &mut example.answer {
                *answer = answer.start - gone..answer.end - gone;
            }
        }
        example.ids.truncate(self.limit.tokens);
        example
            .answer
            .retain(|answer| answer.start < self.limit.tokens);
        if let Some(last) = example.answer.last_mut() {
            last.end = last.end.min(self.limit.tokens);
        }
        Ok(match no_room {
            true => LengthOutcome::PromptTruncated(example),
            false => LengthOutcome::Truncated(example),
        })
    }

    /// The pair within the limit. Counts pairs whose answers are then equal.
    pub(super) fn fit_pair(&self, record: &Record, pair: Pair) -> Result<LengthOutcome<Pair>> {
        let fitted = self.cut_pair(record, pair)?;
        if let LengthOutcome::Whole(pair)
        | LengthOutcome::Truncated(pair)
        | LengthOutcome::PromptTruncated(pair) = &fitted
        {
            let equal = usize::from(pair.chosen == pair.rejected);
            self.equal_answers.fetch_add(equal, Ordering::Relaxed);
        }
        Ok(fitted)
    }

    fn cut_pair(&self, record: &Record, mut pair: Pair) -> Result<LengthOutcome<Pair>> {
        let given = pair.prompt.len();
        let longer = pair.chosen.len().max(pair.rejected.len());
        if given + longer <= self.limit.tokens {
            return Ok(LengthOutcome::Whole(pair));
        }
        match self.policy {
            TooLong::Skip => return Ok(LengthOutcome::Skipped),
            TooLong::Error => {
                let what = "the longer of prompt with answer";
                return Err(self.too_long(record, what, given + longer));
            }
            TooLong::Truncate => {}
        }
        let no_room = given >= self.limit.tokens;
        if no_room {
            let room = self.prompt_room(record, given, longer)?;
            self.cut_start(&mut pair.prompt, room);
        }
        let room = self.limit.tokens - pair.prompt.len();
        pair.chosen.truncate(room);
        pair.rejected.truncate(room);
        Ok(match no_room {
            true => LengthOutcome::PromptTruncated(pair),
            false => LengthOutcome::Truncated(pair),
        })
    }

    /// Number of tokens that a prompt keeps if it would leave its answer no room: the answer takes
    /// as many as it needs, up to half.
    fn prompt_room(&self, record: &Record, given: usize, answer: usize) -> Result<usize> {
        let limit = self.limit.tokens;
        match limit - answer.min(limit.div_ceil(2)) {
            0 => Err(self.too_long(record, PROMPT, given)),
            room => Ok(room),
        }
    }

    fn cut_start(&self, ids: &mut Vec<u32>, room: usize) {
        cut_start(ids, self.tokenizer.prefix(), room);
    }

    fn too_long(&self, record: &Record, what: &'static str, found: usize) -> DataError {
        self.limit.refuse(record, what, found)
    }
}
