//! Records become token ids: documents, examples to learn from, preference pairs, prompts.
//!
//! Prompt and completion are tokenised separately and joined, so their boundary is a token boundary
//! in training as in generation. Some tokenizers put a space before a text; a span that continues
//! another gets none ([`super::tokenizer::TextPosition`]), so the joined ids are those of the whole
//! text if the boundary falls between two of its tokens. A completion ends with one EOS. A chat is
//! rendered by the model's template and tokenised span by span; an answer ends with the token that
//! closes its turn. If the template renders earlier turns differently later, each answer is an
//! example of its own, with its history as at inference.
//!
//! The name of a special token in a prompt, completion or message is that token, as in
//! transformers; in a pretraining document it is text. Plain text starts with the tokens that the
//! tokenizer puts before a text (often BOS); a chat template writes them itself.

mod chat;
mod gather;
mod limits;
mod reasoning;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Map, Value};

use super::closing::turn_end;
use super::error::{DataError, Result};
use super::records::is_unread;
use super::records::shapes::{RecordTask, Style};
use super::records::{LeftOut, Message, Preference, Record, Turns};
use super::template::{ChatTemplate, Variables};
use super::tokenizer::Tokenizer;
use crate::config::{BadRecords, Learn, TooLong};
pub use gather::documents;
pub use limits::{Limit, TooLongCounts, cut_start};

/// A sequence to learn from by next-token prediction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// All tokens.
    pub ids: Vec<u32>,
    /// The tokens that the loss counts: ranges in `ids`, ascending.
    pub answer: Vec<Range<usize>>,
}

/// A preference: two answers to one prompt. Each answer ends with the token that closes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens of the better answer.
    pub chosen: Vec<u32>,
    /// Tokens of the worse answer.
    pub rejected: Vec<u32>,
    /// Smallest difference that the scores should have; 0 if the record has none.
    pub margin: f32,
}

impl Pair {
    /// The two sequences prompt ⊕ chosen and prompt ⊕ rejected.
    pub fn sequences(&self) -> [Vec<u32>; 2] {
        [&self.chosen, &self.rejected].map(|answer| [self.prompt.as_slice(), answer].concat())
    }
}

/// A prompt to generate from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens of the prompt.
    pub ids: Vec<u32>,
    /// The prompt's rendered text.
    pub text: String,
    /// The last user message of a chat; of a plain prompt the text.
    pub question: String,
    /// The record's other fields, which rewards may compare an answer with.
    pub fields: Map<String, Value>,
}

/// Encoded records, in the file's order.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded<T> {
    /// The records that fit.
    pub items: Vec<T>,
    /// Numbers of records that were too long.
    pub too_long: TooLongCounts,
    /// Bad records that were left out.
    pub bad: LeftOut,
    /// Fields of the records that were not read, in alphabetical order.
    pub unused: Vec<String>,
}

/// Encodes records for one model: its tokenizer, its chat template and its limit.
#[derive(Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<ChatTemplate>,
    /// The token with which the template closes an assistant's turn.
    turn_end: Option<u32>,
    eos: u32,
    limit: Limit,
    policy: TooLong,
    bad_records: BadRecords,
    learn: Learn,
    lost_reasoning: AtomicUsize,
    equal_answers: AtomicUsize,
}

impl<'a> Encoder<'a> {
    /// An encoder for sequences within `limit`; `policy` is applied to longer ones.
    ///
    /// # Errors
    /// A tokenizer without EOS, or a chat template that does not compile.
    pub fn new(tokenizer: &'a Tokenizer, limit: Limit, policy: TooLong) -> Result<Self> {
        let (template, eos) = (tokenizer.compiled_template()?, tokenizer.eos_id()?);
        let turn_end = template
            .as_ref()
            .and_then(|template| turn_end(tokenizer, template));
        Ok(Encoder {
            tokenizer,
            template,
            turn_end,
            eos,
            limit,
            policy,
            bad_records: BadRecords::Error,
            learn: Learn::All,
            lost_reasoning: AtomicUsize::new(0),
            equal_answers: AtomicUsize::new(0),
        })
    }

    /// This encoder with another policy for bad records.
    #[must_use]
    pub fn with_bad_records(mut self, policy: BadRecords) -> Self {
        self.bad_records = policy;
        self
    }

    /// This encoder, for examples that learn these answers of a conversation.
    #[must_use]
    pub fn learning(self, learn: Learn) -> Self {
        Self { learn, ..self }
    }

    /// Number of answers encoded so far whose reasoning the template drops.
    pub fn lost_reasoning(&self) -> usize {
        self.lost_reasoning.load(Ordering::Relaxed)
    }

    /// Number of pairs encoded so far whose two answers have the same tokens.
    pub fn equal_answers(&self) -> usize {
        self.equal_answers.load(Ordering::Relaxed)
    }

    /// The limit on a sequence.
    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// Examples of records with `messages`, `prompt` and `completion`, or `text`, of which every
    /// token is learned; other shapes are converted to these. A conversation is one example, or one
    /// for each answer if the template renders earlier turns differently later.
    ///
    /// # Errors
    /// A record without those fields, with nothing to learn, or too long under the policy.
    pub fn examples(&self, records: &[Record]) -> Result<Encoded<Vec<Example>>> {
        self.gather(RecordTask::Examples, records, |record| {
            record.check_weights(self.learn)?;
            self.fit_examples(record, self.examples_of(record)?)
        })
    }

    /// Examples of the same shapes for scoring, including records whose labels forbid learning from
    /// them.
    ///
    /// # Errors
    /// The errors of [`Self::examples`].
    pub fn texts(&self, records: &[Record]) -> Result<Encoded<Vec<Example>>> {
        self.gather(RecordTask::Texts, records, |record| {
            self.fit_examples(record, self.examples_of(record)?)
        })
    }

    fn examples_of(&self, record: &Record) -> Result<Vec<Example>> {
        let has = |name: &str| record.fields.contains_key(name);
        if has("messages") {
            self.conversation(record, &record.messages()?, 0)
        } else if has("text") && !has("prompt") && !has("completion") {
            Ok(vec![self.document(record)?])
        } else {
            self.completion(record)
        }
    }

    /// Pairs of records with `chosen` and `rejected`, and optionally `prompt` and `margin`.
    ///
    /// # Errors
    /// A record without those fields, or too long under the policy.
    pub fn pairs(&self, records: &[Record]) -> Result<Encoded<Pair>> {
        self.gather(RecordTask::Pairs, records, |record| {
            self.fit_pair(record, self.pair(record)?)
        })
    }

    /// Pairs for losses on the log-probs of the answers. Without a `prompt`, the common start of
    /// both answers is the prompt.
    ///
    /// # Errors
    /// The errors of [`Self::pairs`]; and a record with an answer without a predicted token.
    pub fn direct_pairs(&self, records: &[Record]) -> Result<Encoded<Pair>> {
        self.gather(RecordTask::DirectPairs, records, |record| {
            let pair = self.pair(record)?;
            let least = pair.chosen.len().min(pair.rejected.len());
            if pair.prompt.len() + least <= pair.prompt.len().max(1) {
                let message = "no prompt and an empty answer, so that no token of the answer is \
                               predicted; give it a `prompt`";
                return Err(DataError::Record {
                    at: record.source.clone(),
                    message: message.to_owned(),
                });
            }
            self.fit_pair(record, pair)
        })
    }

    /// Prompts of records with `prompt`, up to the start of the answer, with the record's other
    /// fields.
    ///
    /// # Errors
    /// A record without `prompt`, one without a token, or one that is too long under the policy.
    pub fn prompts(&self, records: &[Record]) -> Result<Encoded<Prompt>> {
        self.gather(RecordTask::Prompts, records, |record| {
            let prompt = self.prompt(record)?;
            self.fit_prompt(record, prompt)
        })
    }

    /// A document, of which every token is learned, with one EOS at its end.
    fn document(&self, record: &Record) -> Result<Example> {
        let mut ids = self.plain_prompt(record.text()?)?;
        if ids.last() != Some(&self.eos) {
            ids.push(self.eos);
        }
        let answer = std::iter::once(0..ids.len()).collect();
        Ok(Example { ids, answer })
    }

    /// The record converted to the fields that `task` reads.
    ///
    /// # Errors
    /// A shape that the task does not read.
    pub fn shaped<'r>(&self, record: &'r Record, task: RecordTask) -> Result<Cow<'r, Record>> {
        record.shaped(task, self.style())
    }

    /// Style of prompts that could be a chat or plain text.
    pub fn style(&self) -> Style {
        match self.template {
            Some(_) => Style::Chat,
            None => Style::Plain,
        }
    }

    fn completion(&self, record: &Record) -> Result<Vec<Example>> {
        let parts = record.prompt_completion()?;
        match (parts.prompt, parts.completion) {
            (Turns::Text(prompt), Turns::Text(completion)) => {
                let mut ids = self.plain_prompt(&prompt)?;
                let start = ids.len();
                ids.extend(self.plain_answer(&ids, &completion)?);
                let answer = std::iter::once(start..ids.len()).collect();
                Ok(vec![Example { ids, answer }])
            }
            (Turns::Messages(mut prompt), Turns::Messages(completion)) => {
                let first_answer = prompt.len();
                prompt.extend(completion);
                self.conversation(record, &prompt, first_answer)
            }
            _ => Err(nothing_to_learn(record)), // the view lets no mixed forms through
        }
    }

    fn pair(&self, record: &Record) -> Result<Pair> {
        let Preference {
            prompt,
            chosen,
            rejected,
            margin,
        } = record.preference()?;
        let margin = margin.unwrap_or(0.0);
        match (prompt, chosen, rejected) {
            (Turns::Text(prompt), Turns::Text(chosen), Turns::Text(rejected)) => {
                let prompt = self.plain_prompt(&prompt)?;
                Ok(Pair {
                    chosen: self.plain_answer(&prompt, &chosen)?,
                    rejected: self.plain_answer(&prompt, &rejected)?,
                    prompt,
                    margin,
                })
            }
            (Turns::Messages(prompt), Turns::Messages(chosen), Turns::Messages(rejected)) => {
                let (prompt_ids, chosen) = self.chat_answer(record, &prompt, chosen)?;
                let (_, rejected) = self.chat_answer(record, &prompt, rejected)?;
                Ok(Pair {
                    prompt: prompt_ids,
                    chosen,
                    rejected,
                    margin,
                })
            }
            _ => Err(nothing_to_learn(record)), // the view lets no mixed forms through
        }
    }

    fn prompt(&self, record: &Record) -> Result<Prompt> {
        let (text, question, ids) = match record.prompt()? {
            Turns::Text(text) => {
                let ids = self.plain_prompt(&text)?;
                (text.clone(), text, ids)
            }
            Turns::Messages(messages) => {
                let variables = Variables::of(record)?;
                let chat = self.template(record)?.chat(&messages, &variables);
                let text = chat.opened().map_err(|e| at(record, e))?;
                let ids = self.tokenizer.encode_rendered(&text)?;
                let user = messages.iter().rfind(|message| message.role() == "user");
                let question = user.and_then(Message::content).unwrap_or(&text).to_owned();
                (text, question, ids)
            }
        };
        if ids.is_empty() {
            let message = "`prompt` has no token to generate from; give it some text".to_owned();
            return Err(DataError::Record {
                at: record.source.clone(),
                message,
            });
        }
        let mut fields = record.fields.clone();
        fields.shift_remove("prompt");
        fields.retain(|_, value| !is_unread(value));
        Ok(Prompt {
            ids,
            text,
            question,
            fields,
        })
    }

    fn plain_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode_rendered(text)?;
        Ok([self.tokenizer.prefix(), &ids].concat())
    }

    /// Ids of a completion of `prompt`, with one EOS at its end.
    fn plain_answer(&self, prompt: &[u32], text: &str) -> Result<Vec<u32>> {
        let place = self.tokenizer.place_after(prompt);
        let mut ids = self.tokenizer.encode_at(text, place)?;
        if ids.last() != Some(&self.eos) {
            ids.push(self.eos);
        }
        Ok(ids)
    }
}

/// Ids of the field `text` of each record, after the tokens that the tokenizer puts before a text.
/// Packing adds the EOS.
///
/// # Errors
/// A record without `text`.
pub fn encode_documents(tokenizer: &Tokenizer, records: &[Record]) -> Result<Vec<Vec<u32>>> {
    let texts: Vec<&str> = records.iter().map(Record::text).collect::<Result<_>>()?;
    let mut documents = tokenizer.encode_batch(&texts)?;
    for document in &mut documents {
        document.splice(..0, tokenizer.prefix().iter().copied());
    }
    Ok(documents)
}

fn nothing_to_learn(record: &Record) -> DataError {
    let message = "there is nothing to learn: expected an answer with at least one token that \
                   follows another \
                   (a completion, or a message with role \"assistant\")";
    DataError::Record {
        at: record.source.clone(),
        message: message.into(),
    }
}

/// A template's error, with the record that was rendered.
pub fn at(record: &Record, error: DataError) -> DataError {
    let at = record.source.clone();
    match error {
        DataError::TemplateBound(message) => {
            DataError::TemplateBound(format!("{message} (at {at})"))
        }
        error => DataError::Record {
            at,
            message: error.to_string(),
        },
    }
}

#[cfg(test)]
mod prefixed;
#[cfg(test)]
mod tests;
