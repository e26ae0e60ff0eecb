//! Chats: a conversation is rendered in spans, which are tokenised one by one; each answer ends at
//! the token that closes its turn.

use std::sync::atomic::Ordering;

use super::limits::LengthOutcome;
use super::{Encoder, Example, at, nothing_to_learn, reasoning};
use crate::config::{Learn, TooLong};
use crate::data::error::{DataError, Result};
use crate::data::records::{Message, Record};
use crate::data::template::{ChatTemplate, TemplateSpan, Variables};

impl Encoder<'_> {
    /// Examples of a conversation whose assistant turns from `first_answer` on are learned: one
    /// example, or one for each answer if the template renders earlier turns differently later.
    pub(super) fn conversation(
        &self,
        record: &Record,
        messages: &[Message],
        first_answer: usize,
    ) -> Result<Vec<Example>> {
        let variables = Variables::of(record)?;
        let chat = self.template(record)?.chat(messages, &variables);
        let renderings = chat.renderings(first_answer, self.learn);
        let renderings = renderings.map_err(|e| at(record, e))?;
        let learned = match self.learn {
            Learn::All => first_answer,
            Learn::Last => last_answer(messages),
        };
        self.note_lost(&messages[learned..], &renderings);
        let examples = renderings.iter().map(|spans| self.spans(spans));
        let mut examples: Vec<Example> = examples.collect::<Result<_>>()?;
        examples.retain(|example| !example.answer.is_empty());
        if !examples.is_empty() {
            return Ok(examples);
        }
        Err(no_answer(record, &messages[first_answer..])
            .unwrap_or_else(|| nothing_to_learn(record)))
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
            let message = "`chosen` and `rejected` must continue the prompt with a message of role \
                           \"assistant\"";
            return Err(DataError::Record {
                at: record.source.clone(),
                message: message.into(),
            });
        }
        let messages = [prompt, &answer].concat();
        let variables = Variables::of(record)?;
        let chat = self.template(record)?.chat(&messages, &variables);
        let spans = chat.as_one(prompt.len()).map_err(|e| at(record, e))?;
        let Example { mut ids, answer } = self.spans(&spans)?;
        self.note_lost(&messages[prompt.len()..], &[spans]);
        let (Some(first), Some(last)) = (answer.first(), answer.last()) else {
            return Err(nothing_to_learn(record));
        };
        // White space after the closing token is not scored.
        ids.truncate(last.end);
        let answer = ids.split_off(first.start);
        Ok((ids, answer))
    }

    pub(super) fn template(&self, record: &Record) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| DataError::Record {
            at: record.source.clone(),
            message: format!(
                "the record is a chat, but the tokenizer has no chat template; {}, or give \
                     `prompt` and `completion` as text",
                self.tokenizer.template_remedy()
            ),
        })
    }

    /// The examples of a conversation within the limit. `truncate` leaves out the later answers
    /// whose histories fill a sequence, as a cut of a single rendering would. `skip` leaves out the
    /// whole record if one of its examples is too long.
    pub(super) fn fit_examples(
        &self,
        record: &Record,
        mut examples: Vec<Example>,
    ) -> Result<LengthOutcome<Vec<Example>>> {
        let count = examples.len();
        if self.policy == TooLong::Truncate {
            let fills = |example: &Example| example.answer[0].start >= self.limit.tokens;
            let fitting = examples
                .iter()
                .take_while(|example| !fills(example))
                .count();
            examples.truncate(fitting.max(1));
        }
        let (mut kept, mut whole, mut prompt_whole) = (Vec::new(), examples.len() == count, true);
        for example in examples {
            match self.fit_example(record, example)? {
                LengthOutcome::Whole(example) => kept.push(example),
                LengthOutcome::Truncated(example) => {
                    whole = false;
                    kept.push(example);
                }
                LengthOutcome::PromptTruncated(example) => {
                    prompt_whole = false;
                    kept.push(example);
                }
                LengthOutcome::Skipped => return Ok(LengthOutcome::Skipped),
            }
        }
        Ok(match (prompt_whole, whole) {
            (false, _) => LengthOutcome::PromptTruncated(kept),
            (true, false) => LengthOutcome::Truncated(kept),
            (true, true) => LengthOutcome::Whole(kept),
        })
    }

    fn note_lost(&self, answers: &[Message], renderings: &[Vec<TemplateSpan>]) {
        let lost = reasoning::lost(answers, renderings);
        self.lost_reasoning.fetch_add(lost, Ordering::Relaxed);
    }

    /// The example of one rendering.
    fn spans(&self, spans: &[TemplateSpan]) -> Result<Example> {
        let mut example = Example {
            ids: Vec::new(),
            answer: Vec::new(),
        };
        for span in spans {
            match span {
                TemplateSpan::Given(text) => {
                    let ids = self.encode_after(&example, text)?;
                    example.ids.extend(ids);
                }
                TemplateSpan::Answer(text) => self.push_answer(&mut example, text)?,
            }
        }
        if matches!(spans.last(), Some(TemplateSpan::Answer(_))) {
            self.close(&mut example);
        }
        Ok(example)
    }

    /// Ids of a span that continues from those of `example`.
    fn encode_after(&self, example: &Example, text: &str) -> Result<Vec<u32>> {
        let place = self.tokenizer.place_in_text(&example.ids);
        self.tokenizer.encode_at(text, place)
    }

    fn push_answer(&self, example: &mut Example, text: &str) -> Result<()> {
        let ids = self.encode_after(example, text)?;
        let start = example.ids.len();
        let length = self.answer_length(&ids)?;
        example.ids.extend(ids);
        if length > 0 {
            example.answer.push(start..start + length);
        }
        Ok(())
    }

    /// Number of tokens up to the token that closes the turn; white space that templates write
    /// after it is not learned.
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

    /// Whether a turn can end with this token: a special token, or the one with which the template
    /// closes an assistant's turn.
    fn closes(&self, id: u32) -> bool {
        self.tokenizer.is_special(id) || self.turn_end == Some(id)
    }

    /// Ends a conversation's last answer with EOS if the template does not close it; otherwise the
    /// model would not learn to stop.
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

/// The error of messages to learn from of which none is the assistant's, with their roles.
fn no_answer(record: &Record, messages: &[Message]) -> Option<DataError> {
    let mut roles: Vec<&str> = Vec::new();
    for role in messages.iter().map(Message::role) {
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    let lacks = !roles.is_empty() && !roles.contains(&"assistant");
    lacks.then(|| DataError::Record {
        at: record.source.clone(),
        message: format!(
            "there is nothing to learn: no message has the role assistant; roles found: {}",
            roles.join(", ")
        ),
    })
}

/// Index of the last answer; the number of messages if there is none.
fn last_answer(messages: &[Message]) -> usize {
    let last = messages
        .iter()
        .rposition(|message| message.role() == "assistant");
    last.unwrap_or(messages.len())
}
