//! `collimate generate`: completions of the prompts in a file.
//!
//! Draws are keyed by the seed, the prompt's place in the file, the sample and the position, so the
//! output depends neither on `--batch` nor on the order in which completions finish.

use std::time::Instant;

use anyhow::bail;
use rollout::random::Purpose;
use rollout::{Completion, Finish, Request, Sampling, Settings};
use serde::Serialize;

use super::inputs::{ModelFolder, TextEncoder, wrong};
use super::output::JsonLines;
use crate::cli::{Decoding, GenerateArgs, StopTokens};
use crate::config::Generation;
use crate::data::{self, DataError, Record, Result, Tokenizer};
use crate::model::Decoder;
use crate::model::config::Head;
use crate::model::generator::Generator;
use crate::train::progress::Progress;
use crate::train::signal::{Outcome, StopRequest};

/// The field that gives tokens without a tokenizer.
const PROMPT_IDS: &str = "prompt_ids";

/// A prompt's own limit of new tokens.
const MAX_NEW_TOKENS: &str = "max_new_tokens";

/// What is written of a completion.
#[derive(Serialize)]
struct Line<'a> {
    /// Place of the prompt among the records, from 0.
    index: usize,
    /// Which of the prompt's completions, from 0.
    sample: usize,
    prompt_ids: &'a [u32],
    /// The generated tokens, with what ended them.
    completion_ids: &'a [u32],
    /// Their text without special tokens and stop text; null for a model without a tokenizer.
    completion: Option<String>,
    /// Each token's log-probability in the distribution it was drawn from.
    logprobs: &'a [f32],
    finish_reason: &'static str,
}

/// Completes the prompts of `args.prompts` with the model in `args.model`, and writes a line for
/// each completion.
///
/// # Errors
/// A model that cannot be loaded, a prompt that cannot be read or leaves no room for its completion,
/// or a file that cannot be written.
pub fn generate(args: &GenerateArgs) -> anyhow::Result<Outcome> {
    let stop = StopRequest::listen()?;
    let generation = args.generation();
    let folder = ModelFolder::open(&args.model)?;
    let requests = requests(args, &folder)?;
    let ends = Ends::new(&generation.stop, args.stop_tokens(), &folder)?;
    let mut out = JsonLines::create(&args.out)?;
    let decoder = folder.decoder(Head::LanguageModel, args.device)?;
    let Some(completions) = complete(args, &generation, &decoder, &requests, &ends, &stop)? else {
        return Ok(Outcome::Stopped);
    };
    for completion in &completions {
        out.write(&line(&requests, completion, &ends)?)?;
    }
    out.finish()?;
    Ok(Outcome::Finished)
}

/// What to ask of the generator, record by record.
fn requests(args: &GenerateArgs, folder: &ModelFolder) -> Result<Vec<Request>> {
    let records = data::read(&args.prompts)?;
    let prompts = folder.token_ids(&records, PROMPT_IDS, encode)?;
    let context = folder.config().decoder.max_position_embeddings;
    let request = |((index, record), prompt): ((usize, &Record), Vec<u32>)| {
        let max_new_tokens = max_new_tokens(record, args.max_new_tokens)?;
        check_room(record, prompt.len(), max_new_tokens, context)?;
        Ok(Request {
            key: index as u64,
            prompt,
            max_new_tokens,
            min_new_tokens: 0,
            samples: args.num_samples,
        })
    };
    records
        .iter()
        .enumerate()
        .zip(prompts)
        .map(request)
        .collect()
}

/// `prompt`, or `messages` opened for the answer, as tokens.
fn encode(text: &TextEncoder<'_>, record: &Record) -> Result<Vec<u32>> {
    let mut record = record.clone();
    if let Some(messages) = record.fields.get("messages").cloned() {
        record.messages()?; // what is wrong with them is told by their own name
        record.fields.insert("prompt".to_owned(), messages);
    }
    let prompts = text.records.prompts(std::slice::from_ref(&record))?;
    Ok(prompts.items.into_iter().flat_map(|p| p.ids).collect())
}

fn max_new_tokens(record: &Record, default: usize) -> Result<usize> {
    let Some(value) = record.fields.get(MAX_NEW_TOKENS) else {
        return Ok(default);
    };
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
    number.filter(|&n| n > 0).ok_or_else(|| {
        let message =
            format!("field `{MAX_NEW_TOKENS}` is {value}; expected a whole number, 1 or larger");
        wrong(record, message)
    })
}

/// A prompt must leave room for its completion: none is cut short without being asked.
fn check_room(record: &Record, prompt: usize, new: usize, context: usize) -> Result<()> {
    if prompt.saturating_add(new) <= context {
        return Ok(());
    }
    Err(DataError::TooLong {
        at: record.source.clone(),
        what: "the prompt",
        found: prompt,
        limit: format!("the context holds {context}, and {MAX_NEW_TOKENS} asks for {new} of them"),
        mend: "shorten the prompt, or lower max_new_tokens (the flag, or the record's own)",
    })
}

/// The completions in order of (prompt, sample), or `None` if a signal stopped them.
fn complete(
    args: &GenerateArgs,
    generation: &Generation,
    decoder: &Decoder,
    requests: &[Request],
    ends: &Ends<'_>,
    stop: &StopRequest,
) -> anyhow::Result<Option<Vec<Completion>>> {
    let in_text = |generated: &[u32]| ends.in_text(generated);
    let settings = Settings {
        decoding: decoding(args.decoding(), generation),
        seed: args.seed,
        purpose: Purpose::Sample,
        max_batch: args.batch,
        stop_ids: &ends.ids,
        stop_text: (!ends.texts.is_empty()).then_some(&in_text),
        cancel: Some(stop.flag()),
        ..Settings::default()
    };
    let total: usize = requests.iter().map(|request| request.samples).sum();
    let mut shown = Progress::new("generate", 0, total as u64, 1);
    let began = Instant::now();
    let output = rollout::generate(
        &mut Generator::new(decoder),
        requests,
        &settings,
        &mut |now| {
            let rate = now.tokens as f64 / began.elapsed().as_secs_f64();
            shown.step(now.finished as u64, &[("tok/s", rate)]);
        },
    );
    shown.finish();
    match output {
        Ok(output) => Ok(Some(output.completions)),
        Err(rollout::Error::Cancelled) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn decoding(decoding: Decoding, generation: &Generation) -> rollout::Decoding {
    match decoding {
        Decoding::Greedy => rollout::Decoding::Greedy,
        Decoding::Sample => rollout::Decoding::Sample(Sampling {
            temperature: generation.temperature as f32,
            top_k: generation.top_k,
            top_p: generation.top_p as f32,
            min_p: generation.min_p as f32,
        }),
    }
}

fn line<'a>(
    requests: &'a [Request],
    completion: &'a Completion,
    ends: &Ends<'_>,
) -> Result<Line<'a>> {
    Ok(Line {
        index: completion.request,
        sample: completion.sample,
        prompt_ids: &requests[completion.request].prompt,
        completion_ids: &completion.tokens,
        completion: ends.text(&completion.tokens)?,
        logprobs: &completion.log_probs,
        finish_reason: match completion.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        },
    })
}

/// What ends a completion.
struct Ends<'a> {
    ids: Vec<u32>,
    texts: Vec<&'a str>,
    tokenizer: Option<&'a Tokenizer>,
    /// Last tokens of a completion that are searched for a stop text.
    tail: usize,
}

/// Tokens that may stand in a stop text and add no byte to it, and a first one whose leading space
/// decoders leave out.
const SILENT_TOKENS: usize = 8;

impl<'a> Ends<'a> {
    /// The model's stop ids unless they are to be ignored, and the stop texts `stop`. A stop text
    /// that is the name of a special token stops at that token.
    fn new(
        stop: &'a [String],
        tokens: StopTokens,
        folder: &'a ModelFolder,
    ) -> anyhow::Result<Self> {
        let mut ends = Self {
            ids: match tokens {
                StopTokens::End => folder.config().stop_ids.clone(),
                StopTokens::Ignore => Vec::new(),
            },
            texts: Vec::new(),
            tokenizer: folder.tokenizer(),
            // Each token that is not silent brings a byte or more.
            tail: stop.iter().map(String::len).max().unwrap_or(0) + SILENT_TOKENS,
        };
        for text in stop {
            let Some(tokenizer) = ends.tokenizer else {
                bail!(
                    "--stop {text:?} needs a tokenizer, but {} has no tokenizer.json; add it, or \
                     leave --stop out",
                    folder.path().display()
                );
            };
            match tokenizer
                .token_id(text)
                .filter(|&id| tokenizer.is_special(id))
            {
                Some(id) => ends.ids.push(id),
                None => ends.texts.push(text),
            }
        }
        Ok(ends)
    }

    /// Whether the tokens generated so far have come to a stop text. It may end inside the last
    /// token.
    fn in_text(&self, generated: &[u32]) -> bool {
        let tail = &generated[generated.len().saturating_sub(self.tail)..];
        // Ids that have no text hold no stop text.
        let text = self
            .tokenizer
            .and_then(|tokenizer| tokenizer.decode(tail).ok());
        text.is_some_and(|text| self.first(&text).is_some())
    }

    /// The byte at which the first stop text begins.
    fn first(&self, text: &str) -> Option<usize> {
        self.texts.iter().filter_map(|stop| text.find(stop)).min()
    }

    /// The text of a completion up to its stop text.
    fn text(&self, ids: &[u32]) -> Result<Option<String>> {
        let Some(tokenizer) = self.tokenizer else {
            return Ok(None);
        };
        let mut text = tokenizer.decode(ids)?;
        text.truncate(self.first(&text).unwrap_or(text.len()));
        Ok(Some(text))
    }
}
