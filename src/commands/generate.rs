//! `collimate generate`: completions of the prompts in a file.
//!
//! Draws are keyed by the seed, the prompt's place in the file, the sample and the position, so the
//! output depends neither on `--batch` nor on the order in which completions finish.

use std::time::Instant;

use kernels::random::Key;

use crate::random::Purpose;
use anyhow::bail;
use rollout::{Completion, Finish, GenerationSettings, Request, Sampling};
use serde::Serialize;

use super::inputs::{CutEnd, Input, ModelFolder, RecordFile, Room, TextEncoder, wrong};
use super::output::JsonLines;
use crate::cli::{DecodingKind, GenerateArgs, StopTokens};
use crate::config::Generation;
use crate::data::records::shapes::RecordTask;
use crate::data::{DataError, Ends, Limit, Record, Result, Tokenizer};
use crate::model::Decoder;
use crate::model::config::Head;
use crate::model::generator::Generator;
use crate::ops::backend::Backend;
use crate::terminal;
use crate::terminal::phase::NamedStage;
use crate::train::progress::Progress;
use crate::train::signal::{Outcome, StopRequest};

/// The field that gives tokens without a tokenizer.
const PROMPT_IDS: &str = "prompt_ids";

/// Largest number of completions of one call.
const MOST_COMPLETIONS: usize = 10_000_000;

/// Field of a record with its own limit of new tokens.
const MAX_NEW_TOKENS: &str = "max_new_tokens";

/// Output line of a completion.
#[derive(Serialize)]
struct CompletionLine<'a> {
    /// Index of the prompt among the records, from 0.
    index: usize,
    /// Index among the prompt's completions, from 0.
    sample: usize,
    prompt_ids: &'a [u32],
    /// Generated tokens, the stop token included.
    completion_ids: &'a [u32],
    /// Text of the completion without special tokens and stop text; null without a tokenizer.
    completion: Option<String>,
    /// Log-probability of each token in the distribution that it was sampled from.
    logprobs: &'a [f32],
    finish_reason: &'static str,
}

/// Completes the prompts of `args.prompts` with the model in `args.model`, and writes a line for
/// each completion.
///
/// # Errors
/// A model that cannot be loaded, a prompt that cannot be read or leaves no room for its
/// completion, or a file that cannot be written.
pub fn generate(args: &GenerateArgs) -> anyhow::Result<Outcome> {
    let stop = StopRequest::listen()?;
    let _named = NamedStage::new("generate");
    let generation = args.generation();
    let folder = ModelFolder::open(&args.model, args.adapter.as_deref())?;
    let requests = requests(args, &folder)?;
    let ends = ends(&generation.stop, args.stop_tokens(), &folder)?;
    note_unread_sampling(&folder, &generation);
    let mut out = JsonLines::create(&args.out)?;
    let backend = Backend::open(args.device, args.arithmetic)?;
    let decoder = folder.decoder(Head::LanguageModel, &backend)?;
    let in_text = |generated: &[u32]| {
        let tokenizer = folder.tokenizer();
        tokenizer.is_some_and(|tokenizer| ends.completed(tokenizer, generated))
    };
    let settings = GenerationSettings {
        stop_ids: ends.ids(),
        stop_text: ends.has_texts().then_some(&in_text),
        cancel: Some(stop.flag()),
        ..settings(args, &generation)
    };
    let Some(completions) = complete(&decoder, &requests, &settings)? else {
        return Ok(Outcome::Stopped);
    };
    for completion in &completions {
        out.write(&line(&requests, completion, &ends, folder.tokenizer())?)?;
    }
    out.finish()?;
    note_if_none_ended(&completions, &ends);
    Ok(Outcome::Finished)
}

/// Notes sampling settings of `generation_config.json`, which are not used.
fn note_unread_sampling(folder: &ModelFolder, generation: &Generation) {
    let used = [
        ("temperature", generation.temperature),
        ("top_k", generation.top_k as f64),
        ("top_p", generation.top_p),
        ("min_p", generation.min_p),
    ];
    let unread = folder.config().unread_sampling(&used);
    if !unread.is_empty() {
        let unread: Vec<String> = unread
            .iter()
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        terminal::note_once(format!(
            "{}: generation_config.json has {}, which is not used; set --temperature and other \
             flags instead",
            folder.path().display(),
            unread.join(", ")
        ));
    }
}

/// Notes that no completion ended at a stop token: the model may end at another, or need more room.
fn note_if_none_ended(completions: &[Completion], ends: &Ends) {
    let none = completions
        .iter()
        .all(|completion| completion.finish == Finish::Length);
    if !none || completions.is_empty() || (ends.ids().is_empty() && !ends.has_texts()) {
        return;
    }
    terminal::note_once(format!(
        "none of {} completions ended at a stop token ({:?}); raise --max-new-tokens, or set \
         --stop",
        completions.len(),
        ends.ids()
    ));
}

/// Requests to the generator, one for each record.
fn requests(args: &GenerateArgs, folder: &ModelFolder) -> anyhow::Result<Vec<Request>> {
    let context = folder.config().decoder.max_position_embeddings;
    let records = RecordFile {
        command: "generate",
        file: &args.prompts,
        ids_field: PROMPT_IDS,
        part: "the prompt",
        limit: Limit {
            tokens: context,
            words: format!("the context holds {context} with {MAX_NEW_TOKENS}"),
            mend: format!("lower {MAX_NEW_TOKENS}, or choose another --too-long"),
        },
        flags: &args.records,
        cut: CutEnd::Start(folder.tokenizer().map_or(&[], Tokenizer::prefix)),
        task,
        settings: &[MAX_NEW_TOKENS],
    };
    let room = |record: &Record| {
        let new = max_new_tokens(record, args.max_new_tokens)?;
        Ok(room(new, context))
    };
    let inputs = folder.inputs(&records, encode, room)?;
    let request = |input: Input| {
        Ok(Request {
            key: input.index as u64,
            max_new_tokens: max_new_tokens(&input.record, args.max_new_tokens)?,
            prompt: input.ids,
            min_new_tokens: 0,
            samples: args.num_samples,
        })
    };
    check_total(inputs.len(), args.num_samples)?;
    inputs.into_iter().map(request).collect()
}

/// Limits the completions, which are all held in memory until the last.
fn check_total(prompts: usize, samples: usize) -> Result<()> {
    match prompts.saturating_mul(samples) {
        total if total > MOST_COMPLETIONS => Err(DataError::Invalid(format!(
            "--n {samples} of {prompts} prompts makes {total} completions, above the limit of \
             {MOST_COMPLETIONS}; lower --n, or split the file"
        ))),
        _ => Ok(()),
    }
}

/// Fields that hold a whole chat.
const CHATS: [&str; 2] = ["messages", "conversations"];

/// Task by which a record is read: a chat as an example, any other record as a prompt.
fn task(record: &Record) -> RecordTask {
    match CHATS.iter().any(|name| record.has(name)) {
        true => RecordTask::Texts,
        false => RecordTask::Prompts,
    }
}

/// Tokens of `prompt`, or of `messages` (or `conversations`) up to where the answer begins.
fn encode(text: &TextEncoder<'_>, record: &Record) -> Result<Vec<u32>> {
    let chat = CHATS.iter().find(|name| record.has(name));
    let Some(chat) = chat else {
        return prompt_ids(text, record);
    };
    if record.has("prompt") {
        let message = format!(
            "the record has both `prompt` and `{chat}`; rename one of them, for example with \
             --columns other=prompt"
        );
        return Err(wrong(record, message));
    }
    let mut record = text.records.shaped(record, RecordTask::Texts)?.into_owned();
    record.messages()?; // so that errors name `messages`
    let messages = record.fields.get("messages").cloned();
    record
        .fields
        .extend(messages.map(|messages| ("prompt".to_owned(), messages)));
    prompt_ids(text, &record)
}

fn prompt_ids(text: &TextEncoder<'_>, record: &Record) -> Result<Vec<u32>> {
    let prompts = text.records.prompts(std::slice::from_ref(record))?;
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

/// Room of a prompt that leaves `new` tokens of the context to its completion.
fn room(new: usize, context: usize) -> Room {
    Room {
        tokens: context.saturating_sub(new),
        limit: Limit {
            tokens: context,
            words: format!("the context holds {context}, of which {MAX_NEW_TOKENS} takes {new}"),
            mend: "shorten the prompt, or lower max_new_tokens (the flag, or the record's own)"
                .into(),
        },
    }
}

/// The completions in order of (prompt, sample), or `None` if a signal stopped them.
fn complete(
    decoder: &Decoder,
    requests: &[Request],
    settings: &GenerationSettings<'_>,
) -> anyhow::Result<Option<Vec<Completion>>> {
    let total: usize = requests.iter().map(|request| request.samples).sum();
    let mut shown = Progress::counting("completions", "generate", 0, total as u64, 1);
    let began = Instant::now();
    let output = rollout::generate(
        &mut Generator::new(decoder),
        requests,
        settings,
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

/// Settings of the generator without stop tokens and texts.
fn settings(args: &GenerateArgs, generation: &Generation) -> GenerationSettings<'static> {
    GenerationSettings {
        decoding: decoding(args.decoding(), generation),
        key: Key::new(args.seed, Purpose::Sample),
        max_batch: args.batch,
        ..GenerationSettings::default()
    }
}

fn decoding(decoding: DecodingKind, generation: &Generation) -> rollout::Decoding {
    match decoding {
        DecodingKind::Greedy => rollout::Decoding::Greedy,
        DecodingKind::Sample => rollout::Decoding::Sample(Sampling {
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
    ends: &Ends,
    tokenizer: Option<&Tokenizer>,
) -> Result<CompletionLine<'a>> {
    let prompt = &requests[completion.request].prompt;
    let text = tokenizer.map(|tokenizer| ends.text(tokenizer, prompt, &completion.tokens));
    Ok(CompletionLine {
        index: requests[completion.request].key as usize,
        sample: completion.sample,
        prompt_ids: prompt,
        completion_ids: &completion.tokens,
        completion: text.transpose()?,
        logprobs: &completion.log_probs,
        finish_reason: match completion.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        },
    })
}

/// The model's stop ids, unless they are ignored, and the texts `stop`.
fn ends(stop: &[String], tokens: StopTokens, folder: &ModelFolder) -> anyhow::Result<Ends> {
    let ids = match tokens {
        StopTokens::End => folder.config().stop_ids.clone(),
        StopTokens::Ignore => Vec::new(),
    };
    match (folder.tokenizer(), stop.first()) {
        (Some(tokenizer), _) => Ok(Ends::new(ids, stop, tokenizer)),
        (None, None) => Ok(Ends::at_ids(ids)),
        (None, Some(text)) => bail!(
            "--stop {text:?} needs a tokenizer, but {} has no tokenizer.json; add it, or leave \
             --stop out",
            folder.path().display()
        ),
    }
}
