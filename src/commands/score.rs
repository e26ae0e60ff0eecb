//! `collimate score`: scores of a reward model, or log-probs of a language model.
//!
//! Sequences are packed, so nothing is padded and no score depends on its neighbours. Text is
//! tokenised as in training, and a reward model scores where it was trained to: at the token that
//! closes the answer, or at the one before it ([`ScorePosition`]).

use anyhow::{Context as _, ensure};
use kernels::attention::Segments;
use serde::Serialize;

use super::inputs::{CutEnd, Input, ModelFolder, RecordFile, Room, TextEncoder};
use super::output::JsonLines;
use crate::cli::ScoreArgs;
use crate::data::example::at;
use crate::data::records::shapes::RecordTask;
use crate::data::{Example, Limit, Record, Result, Variables};
use crate::model::config::Head;
use crate::model::score_position::ScorePosition;
use crate::model::{Decoder, Gradient};
use crate::ops::backend::Backend;
use crate::ops::head::Target;
use crate::terminal;
use crate::terminal::phase::NamedStage;
use crate::train::progress::Progress;
use crate::train::signal::{Outcome, StopRequest};

/// The field that gives tokens without a tokenizer.
const IDS: &str = "ids";

/// Output line of a reward model.
#[derive(Serialize)]
struct ScoreLine {
    /// Index of the record, from 0.
    index: usize,
    /// Value of the scalar head at the token that is read.
    score: f32,
}

/// Output line of a language model.
#[derive(Serialize)]
struct TokenScoreLine<'a> {
    /// Index of the record, from 0.
    index: usize,
    /// Tokens of the record; n.
    ids: &'a [u32],
    /// Log-probability of each token but the first, given the tokens before it; n − 1.
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
    let _named = NamedStage::new("score");
    let folder = ModelFolder::open(&args.model, args.adapter.as_deref())?;
    let head = folder.config().decoder.head;
    let sequences = sequences(args, &folder, head)?;
    let mut out = JsonLines::create(&args.out)?;
    let backend = Backend::open(args.device, args.arithmetic)?;
    let decoder = folder.decoder(head, &backend)?;
    let position = position(args, &folder, head)?;
    let total = sequences.len() as u64;
    let mut progress = Progress::counting("records", "score", 0, total, 1);
    let mut done = 0;
    for batch in sequences.chunks(args.batch) {
        if stop.is_requested() {
            return Ok(Outcome::Stopped);
        }
        match head {
            Head::Score => write_scores(&decoder, position, batch, &mut out)?,
            Head::LanguageModel => write_token_scores(&decoder, batch, &mut out)?,
        }
        done += batch.len();
        progress.step(done as u64, &[]);
    }
    progress.finish();
    out.finish()?;
    Ok(Outcome::Finished)
}

/// Token at which a reward model is read, with a note on the terminal.
fn position(args: &ScoreArgs, folder: &ModelFolder, head: Head) -> anyhow::Result<ScorePosition> {
    if head == Head::LanguageModel {
        ensure!(
            args.score_at.is_none(),
            "--score-at is for reward models; {} is a language model",
            args.model.display()
        );
        return Ok(ScorePosition::LAST);
    }
    let position = ScorePosition::of(folder.config(), args.score_at)?;
    terminal::note_once(format!(
        "{}: scores {}",
        args.model.display(),
        position.in_words()
    ));
    Ok(position)
}

/// Tokens of each record, within the context.
fn sequences(args: &ScoreArgs, folder: &ModelFolder, head: Head) -> anyhow::Result<Vec<Input>> {
    let context = folder.config().decoder.max_position_embeddings;
    let limit = Limit {
        tokens: context,
        words: format!("the context holds {context}"),
        mend: "shorten it, or use a model of a larger context".into(),
    };
    let records = RecordFile {
        command: "score",
        file: &args.data,
        ids_field: IDS,
        part: "the record",
        limit: limit.clone(),
        flags: &args.records,
        cut: CutEnd::End,
        task: |_| RecordTask::Texts,
        settings: &[],
    };
    let room = |_: &Record| {
        Ok(Room {
            tokens: context,
            limit: limit.clone(),
        })
    };
    let encode = |text: &TextEncoder<'_>, record: &Record| encode(text, record, head);
    folder.inputs(&records, encode, room)
}

/// `prompt` and `completion`, or `messages`, as tokens.
fn encode(text: &TextEncoder<'_>, record: &Record, head: Head) -> Result<Vec<u32>> {
    let record = &*text.records.shaped(record, RecordTask::Texts)?;
    if let Some(ids) = unanswered(text, record)? {
        return Ok(ids);
    }
    let examples = text.records.texts(std::slice::from_ref(record))?;
    // If the template rewrites earlier turns, the last example has the last answer after the
    // history that inference gives it.
    let Some(example) = examples.items.into_iter().flatten().last() else {
        return Ok(Vec::new());
    };
    match head {
        Head::Score => up_to_the_close(text, example),
        Head::LanguageModel => Ok(example.ids),
    }
}

/// Tokens of `messages` without an answer, which training would not read; `None` for others.
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
    let variables = Variables::of(record)?;
    let rendered = template.chat(&messages, &variables).whole();
    let rendered = rendered.map_err(|error| at(record, error))?;
    text.tokenizer.encode_rendered(&rendered).map(Some)
}

/// Tokens of a conversation without the white space that its template puts after the last answer:
/// reward models are trained to score at the token that closes the answer.
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
    position: ScorePosition,
    batch: &[Input],
    out: &mut JsonLines,
) -> anyhow::Result<()> {
    let (ids, segments) = packed(batch);
    let scored = Some(position.rows(batch.iter().map(|input| input.ids.as_slice())));
    let hidden = decoder.forward_at(&ids, &segments, scored, Gradient::Skip)?;
    let scores = decoder.scores(&hidden)?;
    let scores = scores.to_vec1::<f32>()?;
    for (&Input { index, .. }, score) in batch.iter().zip(scores) {
        ensure!(
            score.is_finite(),
            "the score of record {index} is {score}; the model's weights are damaged"
        );
        out.write(&ScoreLine { index, score })?;
    }
    Ok(())
}

fn write_token_scores(
    decoder: &Decoder,
    batch: &[Input],
    out: &mut JsonLines,
) -> anyhow::Result<()> {
    let (ids, segments) = packed(batch);
    let hidden = decoder.forward(&ids, &segments, Gradient::Skip)?;
    let found = decoder.log_probs(&hidden, &next_tokens(batch), 1.0)?;
    let found = found.finite().with_context(|| {
        let ends = [batch.first(), batch.last()].map(|input| input.map_or(0, |i| i.index));
        format!("records {} to {} cannot be scored", ends[0], ends[1])
    })?;
    let log_probs = found.log_probs.to_vec1::<f32>()?;
    let entropy = found.entropy.to_vec1::<f32>()?;
    for (input, rows) in batch.iter().zip(segments.iter()) {
        out.write(&TokenScoreLine {
            index: input.index,
            ids: &input.ids,
            logprobs: &log_probs[rows.start..rows.end - 1],
            entropy: &entropy[rows],
        })?;
    }
    Ok(())
}

/// The tokens of all inputs end to end.
fn packed(batch: &[Input]) -> (Vec<u32>, Segments) {
    let ids = batch.iter().flat_map(|input| input.ids.iter().copied());
    let segments = Segments::from_lengths(batch.iter().map(|input| input.ids.len()));
    (ids.collect(), segments)
}

/// The token after each token; 0 after the last of a sequence, whose entropy alone is used.
fn next_tokens(batch: &[Input]) -> Vec<Target> {
    let following = |input: &Input| {
        input.ids[1..]
            .iter()
            .copied()
            .chain([0])
            .collect::<Vec<_>>()
    };
    let tokens = batch.iter().flat_map(following);
    tokens
        .enumerate()
        .map(|(row, token)| Target::whole(row, token))
        .collect()
}
