//! Chats: spans of the rendered conversation, tokenised one by one, and where each answer ends.

use super::{Encoder, Example, at, nothing_to_learn};
use crate::data::error::{DataError, Result};
use crate::data::records::{Message, Record};
use crate::data::template::{ChatTemplate, Span};

impl Encoder<'_> {
    /// A conversation whose assistant turns from `first_answer` on are learned.
    pub(super) fn conversation(
        &self,
        record: &Record,
        messages: &[Message],
        first_answer: usize,
    ) -> Result<Example> {
        let spans = self
            .template(record)?
            .spans(messages, first_answer)
            .map_err(|e| at(record, e))?;
        let mut example = Example {
            ids: Vec::new(),
            answer: Vec::new(),
        };
        let last = spans
            .iter()
            .rposition(|span| matches!(span, Span::Answer(_)));
        for (i, span) in spans.iter().enumerate() {
            match span {
                Span::Given(text) => example.ids.extend(self.tokenizer.encode_rendered(text)?),
                Span::Answer(text) => self.push_answer(&mut example, text)?,
            }
            if Some(i) == last && i + 1 == spans.len() {
                self.close(&mut example);
            }
        }
        if example.answer.is_empty() {
            Err(nothing_to_learn(record))
        } else {
            Ok(example)
        }
    }

    /// Prompt ids and answer ids of a conversation `prompt ⊕ answer`.
    pub(super) fn chat_answer(
        &self,
        record: &Record,
        prompt: &[Message],
        answer: Vec<Message>,
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        if answer
            .first()
            .is_none_or(|message| message.role() != "assistant")
        {
            let message = "`chosen` and `rejected` must go on from the prompt with a message of \
                           role \"assistant\"";
            return Err(DataError::Record {
                at: record.source.clone(),
                message: message.into(),
            });
        }
        let messages = [prompt, &answer].concat();
        let Example { mut ids, answer } = self.conversation(record, &messages, prompt.len())?;
        let (Some(first), Some(last)) = (answer.first(), answer.last()) else {
            return Err(nothing_to_learn(record));
        };
        // White space after the closing token is not scored.
        ids.truncate(last.end);
        let answer = ids.split_off(first.start);
        Ok((ids, answer))
    }

    pub(super) fn template(&self, record: &Record) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            let message = "the record is a chat, but the tokenizer has no chat template; add \
                           `chat_template` to its \
                           tokenizer_config.json, or give `prompt` and `completion` as text";
            DataError::Record {
                at: record.source.clone(),
                message: message.into(),
            }
        })
    }

    fn push_answer(&self, example: &mut Example, text: &str) -> Result<()> {
        let ids = self.tokenizer.encode_rendered(text)?;
        let start = example.ids.len();
        let length = self.answer_length(&ids)?;
        example.ids.extend(ids);
        if length > 0 {
            example.answer.push(start..start + length);
        }
        Ok(())
    }

    /// Tokens up to the special token that closes the turn; the white space that templates put
    /// after it is given.
    fn answer_length(&self, ids: &[u32]) -> Result<usize> {
        let Some(closing) = ids.iter().rposition(|&id| self.closes(id)) else {
            return Ok(ids.len());
        };
        let after = self.tokenizer.decode(&ids[closing + 1..])?;
        Ok(if after.trim().is_empty() {
            closing + 1
        } else {
            ids.len()
        })
    }

    /// True of a token that a turn can end with: a special one, or the one with which the template closes an assistant's turn.
    fn closes(&self, id: u32) -> bool {
        self.tokenizer.is_special(id) || self.turn_end == Some(id)
    }

    /// Ends a conversation's last answer with EOS where the template closes it with nothing: or it
    /// would never learn to stop.
    fn close(&self, example: &mut Example) {
        let Some(last) = example.answer.last_mut() else {
            return;
        };
        let closed = last
            .end
            .checked_sub(1)
            .is_some_and(|i| self.closes(example.ids[i]));
        if !closed {
            example.ids.truncate(last.end);
            example.ids.push(self.eos);
            last.end += 1;
        }
    }
}
