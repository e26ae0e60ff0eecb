//! From records to token ids: documents, examples to learn from, preference pairs, prompts.
//!
//! Prompt and completion are tokenised apart and joined, so their boundary is a token boundary: at
//! generation the prompt's tokens stand before the first answer is drawn, and training sees the
//! same. A completion ends with EOS, once. A chat is rendered by the model's template and tokenised
//! span by span; an answer reaches to the token that closes its turn.
//!
//! Special tokens' names in prompts, completions and messages are those tokens, as in transformers;
//! in pretraining documents they are text. Plain text starts with what the tokenizer puts before it
//! (often BOS); a template writes its own.
//!
//! Left out: span-by-span tokens equal those of the whole rendering for byte-level tokenizers; one
//! that puts a space before every text (SentencePiece's dummy prefix) gets that space at each span.

mod chat;
mod limits;

use std::ops::Range;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::error::{DataError, Result};
use super::records::{Preference, Record, Turns};
use super::template::{ChatTemplate, GenerationPrompt};
use super::tokenizer::Tokenizer;
use crate::config::TooLong;
use limits::Fate;
pub use limits::{Limit, TooLongCounts};

/// A sequence to learn from by next-token prediction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// All tokens.
    pub ids: Vec<u32>,
    /// The tokens on which the loss counts: ranges in `ids`, ascending.
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
    /// By how much the scores should differ at least; 0 where the record says nothing.
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
    /// Its text, as rendered.
    pub text: String,
    /// The record's fields beside `prompt`: what rewards may compare an answer with.
    pub fields: Map<String, Value>,
}

/// Encoded records, in the file's order.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded<T> {
    /// The records that fit.
    pub items: Vec<T>,
    /// How many did not.
    pub too_long: TooLongCounts,
}

/// Turns records into ids for one model: its tokenizer, its template, the room that it has.
#[derive(Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<ChatTemplate>,
    eos: u32,
    limit: Limit,
    policy: TooLong,
}

impl<'a> Encoder<'a> {
    /// An encoder for sequences within `limit`; `policy` says what becomes of longer ones.
    ///
    /// # Errors
    /// A tokenizer without EOS, or a chat template that does not compile.
    pub fn new(tokenizer: &'a Tokenizer, limit: Limit, policy: TooLong) -> Result<Self> {
        let (template, eos) = (tokenizer.compiled_template()?, tokenizer.eos_id()?);
        Ok(Encoder {
            tokenizer,
            template,
            eos,
            limit,
            policy,
        })
    }

    /// The most tokens of a sequence.
    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// `messages`, or `prompt` + `completion`.
    ///
    /// # Errors
    /// A record without those fields, with nothing to learn, or too long under the policy.
    pub fn examples(&self, records: &[Record]) -> Result<Encoded<Example>> {
        self.gather(records, |record| {
            let example = if record.fields.contains_key("messages") {
                self.conversation(record, &record.messages()?, 0)?
            } else {
                self.completion(record)?
            };
            self.fit_example(record, example)
        })
    }

    /// `chosen` and `rejected`, with `prompt` and `margin` if there.
    ///
    /// # Errors
    /// A record without those fields, or too long under the policy.
    pub fn pairs(&self, records: &[Record]) -> Result<Encoded<Pair>> {
        self.gather(records, |record| self.fit_pair(record, self.pair(record)?))
    }

    /// `prompt`, opened for the answer; the record's other fields go with it.
    ///
    /// # Errors
    /// A record without `prompt`, one without a token, or one that is too long under the policy.
    pub fn prompts(&self, records: &[Record]) -> Result<Encoded<Prompt>> {
        self.gather(records, |record| {
            let prompt = self.prompt(record)?;
            self.fit_prompt(record, prompt)
        })
    }

    fn completion(&self, record: &Record) -> Result<Example> {
        let parts = record.prompt_completion()?;
        match (parts.prompt, parts.completion) {
            (Turns::Text(prompt), Turns::Text(completion)) => {
                let mut ids = self.plain_prompt(&prompt)?;
                let start = ids.len();
                ids.extend(self.plain_answer(&completion)?);
                let answer = std::iter::once(start..ids.len()).collect();
                Ok(Example { ids, answer })
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
            (Turns::Text(prompt), Turns::Text(chosen), Turns::Text(rejected)) => Ok(Pair {
                prompt: self.plain_prompt(&prompt)?,
                chosen: self.plain_answer(&chosen)?,
                rejected: self.plain_answer(&rejected)?,
                margin,
            }),
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
        let (text, ids) = match record.prompt()? {
            Turns::Text(text) => {
                let ids = self.plain_prompt(&text)?;
                (text, ids)
            }
            Turns::Messages(messages) => {
                let text = self
                    .template(record)?
                    .render(&messages, GenerationPrompt::Add);
                let text = text.map_err(|e| at(record, e))?;
                let ids = self.tokenizer.encode_rendered(&text)?;
                (text, ids)
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
        Ok(Prompt { ids, text, fields })
    }

    fn plain_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode_rendered(text)?;
        Ok([self.tokenizer.prefix(), &ids].concat())
    }

    /// The completion's ids, closed by EOS once.
    fn plain_answer(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode_rendered(text)?;
        if ids.last() != Some(&self.eos) {
            ids.push(self.eos);
        }
        Ok(ids)
    }

    /// Encodes in parallel; the first bad record in the file's order is the one reported.
    fn gather<T: Send>(
        &self,
        records: &[Record],
        encode: impl Fn(&Record) -> Result<Fate<T>> + Sync + Send,
    ) -> Result<Encoded<T>> {
        let fates: Vec<Result<Fate<T>>> = records.par_iter().map(encode).collect();
        let mut encoded = Encoded {
            items: Vec::with_capacity(fates.len()),
            too_long: TooLongCounts::default(),
        };
        for fate in fates {
            match fate? {
                Fate::Whole(item) => encoded.items.push(item),
                Fate::Truncated(item) => {
                    encoded.too_long.truncated += 1;
                    encoded.items.push(item);
                }
                Fate::Skipped => encoded.too_long.skipped += 1,
            }
        }
        match encoded.items.is_empty() {
            true => Err(self.none_left(records)),
            false => Ok(encoded),
        }
    }

    fn none_left(&self, records: &[Record]) -> DataError {
        let file = records.first().map_or("the dataset".into(), |record| {
            record.source.file.display().to_string()
        });
        let (count, Limit { words, mend, .. }) = (records.len(), &self.limit);
        let message =
            format!("{file}: no record is left: all {count} are too long, for {words}; {mend}");
        DataError::Invalid(message)
    }
}

/// Ids of the field `text` of each record: what the tokenizer puts before a text, and the text. No
/// EOS: [`super::Packed`] closes each document.
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

/// A template's error, with the record that brought it about.
fn at(record: &Record, error: DataError) -> DataError {
    DataError::Record {
        at: record.source.clone(),
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
