//! Records of more tokens than the context holds: refused, cut or left out, as the policy says.

use serde::{Deserialize, Serialize};

use super::{Encoder, Example, Pair, Prompt, nothing_to_learn};
use crate::data::error::{DataError, Result};
use crate::data::records::Record;

/// What happens to a record of more tokens than the context holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TooLong {
    /// The run does not start; the error names the record.
    #[default]
    Error,
    /// The answer's end is cut. A prompt is never cut: one that leaves no room is an error.
    Truncate,
    /// The record is left out.
    Skip,
}

/// What [`TooLong`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct TooLongCounts {
    /// Records whose end was cut.
    pub truncated: usize,
    /// Records left out.
    pub skipped: usize,
}

/// A record's fate, before the counts are drawn.
pub(super) enum Fate<T> {
    Whole(T),
    Truncated(T),
    Skipped,
}

impl Encoder<'_> {
    pub(super) fn fit_prompt(&self, record: &Record, prompt: Prompt) -> Result<Fate<Prompt>> {
        let room = self.context.saturating_sub(self.reserved);
        match (prompt.ids.len() <= room, self.policy) {
            (true, _) => Ok(Fate::Whole(prompt)),
            (false, TooLong::Skip) => Ok(Fate::Skipped),
            (false, _) => Err(self.prompt_too_long(record, prompt.ids.len())),
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
        if found <= self.context {
            return Ok(Fate::Whole(example));
        }
        match self.policy {
            TooLong::Skip => return Ok(Fate::Skipped),
            TooLong::Error => return Err(self.row_too_long(record, "the record", found)),
            TooLong::Truncate => {}
        }
        let given = example.answer[0].start;
        if given.max(1) >= self.context {
            return Err(self.prompt_too_long(record, given));
        }
        example.ids.truncate(self.context);
        example.answer.retain(|answer| answer.start < self.context);
        if let Some(last) = example.answer.last_mut() {
            last.end = last.end.min(self.context);
        }
        Ok(Fate::Truncated(example))
    }

    pub(super) fn fit_pair(&self, record: &Record, mut pair: Pair) -> Result<Fate<Pair>> {
        let given = pair.prompt.len();
        let found = given + pair.chosen.len().max(pair.rejected.len());
        if found <= self.context {
            return Ok(Fate::Whole(pair));
        }
        match self.policy {
            TooLong::Skip => return Ok(Fate::Skipped),
            TooLong::Error => {
                return Err(self.row_too_long(record, "the longer of prompt with answer", found));
            }
            TooLong::Truncate if given >= self.context => {
                return Err(self.prompt_too_long(record, given));
            }
            TooLong::Truncate => {}
        }
        pair.chosen.truncate(self.context - given);
        pair.rejected.truncate(self.context - given);
        Ok(Fate::Truncated(pair))
    }

    fn row_too_long(&self, record: &Record, what: &'static str, found: usize) -> DataError {
        let mend = "set too_long to \"truncate\" or \"skip\", or use a larger context";
        let limit = format!("the context holds {}", self.context);
        DataError::TooLong {
            at: record.source.clone(),
            what,
            found,
            limit,
            mend,
        }
    }

    fn prompt_too_long(&self, record: &Record, found: usize) -> DataError {
        let limit = match self.reserved {
            0 => format!("the context holds {}", self.context),
            n => format!(
                "the context holds {}, of which {n} are kept for the response",
                self.context
            ),
        };
        let mend = "shorten the prompt, set too_long to \"skip\", or use a larger context";
        DataError::TooLong {
            at: record.source.clone(),
            what: "the prompt",
            found,
            limit,
            mend,
        }
    }
}
