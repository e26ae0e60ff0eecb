//! `collimate score`: what a reward model or a language model says of given texts.
//!
//! Sequences are packed, so nothing is padded and no score depends on its neighbours. Text is
//! tokenised as in training, and a reward model scores where it was trained to: at the token that
//! closes the answer.

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::inputs::{ModelFolder, TextEncoder, wrong};
use super::output::JsonLines;
use crate::cli::ScoreArgs;
use crate::data::{self, DataError, Example, GenerationPrompt, Record, Result};
use crate::model::config::Head;
use crate::model::{Decoder, Gradient};
use crate::ops::attention::Segments;
use crate::ops::head::Target;
use crate::stages::arithmetic;
use crate::train::progress::Progress;
use crate::train::signal::{Outcome, StopRequest};

/// The field that gives tokens without a tokenizer.
const IDS: &str = "ids";

/// What a reward model writes.
#[derive(Serialize)]
struct Score {
    /// Place among the records, from 0.
    index: usize,
    /// The head's value at the last token.
    score: f32,
}

/// What a language model writes.
#[derive(Serialize)]
struct TokenScores<'a> {
    /// Place among the records, from 0.
    index: usize,
    /// The n tokens.
    ids: &'a [u32],
    /// Log-probability of each token but the first, given those before it; n − 1.
    logprobs: &'a [f32],
    /// Entropy in nats of the distribution after each token; n.
    entropy: &'a [f32],
}

/// Scores the records of `args.data` with the model in `args.model`, and writes a line for each.
///
/// # Errors
/// A model that cannot be loaded, a record that cannot be read or is longer than the model's
/// context, or a file that cannot be written.
pub fn score(args: &ScoreArgs) -> anyhow::Result<Outcome> {
    let stop = StopRequest::listen()?;
    let folder = ModelFolder::open(&args.model, args.adapter.as_deref())?;
    let head = folder.config().decoder.head;
    let sequences = sequences(args, &folder, head)?;
    let mut out = JsonLines::create(&args.out)?;
    let decoder = folder.decoder(head, args.device)?;
    let total = sequences.len() as u64;
    let mut progress = Progress::new("score", 0, total, 1);
    let mut first = 0;
    for batch in sequences.chunks(args.batch) {
        if stop.is_requested() {
            return Ok(Outcome::Stopped);
        }
        arithmetic::of(args.arithmetic).during(|| match head {
            Head::Score => write_scores(&decoder, first, batch, &mut out),
            Head::LanguageModel => write_token_scores(&decoder, first, batch, &mut out),
        })?;
        first += batch.len();
        progress.step(first as u64, &[]);
    }
    progress.finish();
    out.finish()?;
    Ok(Outcome::Finished)
}

/// The tokens to score, record by record, each within the context.
fn sequences(args: &ScoreArgs, folder: &ModelFolder, head: Head) -> Result<Vec<Vec<u32>>> {
    let records = data::read(&args.data)?;
    let encode = |text: &TextEncoder<'_>, record: &Record| encode(text, record, head);
    let sequences = folder.token_ids(&records, IDS, encode)?;
    let context = folder.config().decoder.max_position_embeddings;
    let too_long = |(_, ids): &(&Record, &Vec<u32>)| ids.len() > context;
    match records.iter().zip(&sequences).find(too_long) {
        None => Ok(sequences),
        Some((record, ids)) => Err(DataError::TooLong {
            at: record.source.clone(),
            what: "the record",
            found: ids.len(),
            limit: format!("the context holds {context}"),
            mend: "shorten it, or use a model of a larger context".into(),
        }),
    }
}

/// `prompt` and `completion`, or `messages`, as tokens.
fn encode(text: &TextEncoder<'_>, record: &Record, head: Head) -> Result<Vec<u32>> {
    if let Some(ids) = unanswered(text, record)? {
        return Ok(ids);
    }
    let examples = text.records.examples(std::slice::from_ref(record))?;
    let mut ids = Vec::new();
    for example in examples.items {
        ids.extend(match head {
            Head::Score => up_to_the_close(text, example)?,
            Head::LanguageModel => example.ids,
        });
    }
    Ok(ids)
}

/// The whole rendering of `messages` among which no answer is, where training sees nothing.
fn unanswered(text: &TextEncoder<'_>, record: &Record) -> Result<Option<Vec<u32>>> {
    if !record.fields.contains_key("messages") {
        return Ok(None);
    }
    let messages = record.messages()?;
    if messages.iter().any(|message| message.role() == "assistant") {
        return Ok(None);
    }
    // Without a template the encoder says what is missing.
    let Some(template) = text.tokenizer.compiled_template()? else {
        return Ok(None);
    };
    let rendered = template.render(&messages, GenerationPrompt::Omit);
    let rendered = rendered.map_err(|error| wrong(record, error.to_string()))?;
    text.tokenizer.encode_rendered(&rendered).map(Some)
}

/// A conversation's tokens without the white space that its template puts after the last answer:
/// reward models are trained to score at the token that closes it.
fn up_to_the_close(text: &TextEncoder<'_>, mut example: Example) -> Result<Vec<u32>> {
    let end = example.answer.last().map_or(example.ids.len(), |a| a.end);
    let rest = text.tokenizer.decode_with_specials(&example.ids[end..])?;
    if rest.trim().is_empty() {
        example.ids.truncate(end);
    }
    Ok(example.ids)
}

fn write_scores(
    decoder: &Decoder,
    first: usize,
    batch: &[Vec<u32>],
    out: &mut JsonLines,
) -> anyhow::Result<()> {
    let segments = Segments::from_lengths(batch.iter().map(Vec::len));
    let last = Some(segments.last_rows()?.into());
    let hidden = decoder.forward_at(&batch.concat(), &segments, last, Gradient::Skip)?;
    let scores = decoder.scores(&hidden)?;
    let scores = scores.to_vec1::<f32>()?;
    for (index, score) in (first..).zip(scores) {
        ensure!(
            score.is_finite(),
            "the score of record {index} is {score}; the model's weights are damaged"
        );
        out.write(&Score { index, score })?;
    }
    Ok(())
}

fn write_token_scores(
    decoder: &Decoder,
    first: usize,
    batch: &[Vec<u32>],
    out: &mut JsonLines,
) -> anyhow::Result<()> {
    let segments = Segments::from_lengths(batch.iter().map(Vec::len));
    let hidden = decoder.forward(&batch.concat(), &segments, Gradient::Skip)?;
    let found = decoder.log_probs(&hidden, &next_tokens(batch), 1.0)?;
    let last = first + batch.len() - 1;
    let found = found
        .finite()
        .with_context(|| format!("records {first} to {last} cannot be scored"))?;
    let log_probs = found.log_probs.to_vec1::<f32>()?;
    let entropy = found.entropy.to_vec1::<f32>()?;
    for ((index, ids), rows) in (first..).zip(batch).zip(segments.iter()) {
        out.write(&TokenScores {
            index,
            ids,
            logprobs: &log_probs[rows.start..rows.end - 1],
            entropy: &entropy[rows],
        })?;
    }
    Ok(())
}

/// For each token the one that follows. After a sequence's last any token serves, for its entropy
/// alone is used.
fn next_tokens(batch: &[Vec<u32>]) -> Vec<Target> {
    let following = |ids: &Vec<u32>| ids[1..].iter().copied().chain([0]).collect::<Vec<_>>();
    let tokens = batch.iter().flat_map(following);
    tokens
        .enumerate()
        .map(|(row, token)| Target::whole(row, token))
        .collect()
}
