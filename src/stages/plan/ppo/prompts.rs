//! The longest prompt, and how many there are.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::super::models::Folders;
use super::super::roles::Models;
use crate::config::{BadRecords, Ppo, TooLong};
use crate::data::example::{Encoder, Limit};
use crate::data::records::{Record, read_file};
use crate::stages::ppo::room_in;

/// Tokens of the longest prompt, and where that is known from.
pub(super) struct LongestPrompt {
    pub tokens: usize,
    /// How many there are to train on, and to evaluate on; as many as are asked for where that is not known.
    pub counts: [usize; 2],
    pub note: String,
}

impl LongestPrompt {
    pub fn of(folders: Folders, config: &Ppo, models: &Models) -> Result<Self> {
        let (pass, context) = (config.training.micro_batch_tokens, context(models));
        let scorers = models.rewards.iter().map(|reward| &reward.decoder);
        let scorers =
            scorers.map(|decoder| ("the reward model's", decoder.max_position_embeddings));
        let policy = models.policy.decoder.max_position_embeddings;
        let room = room_in(config, policy, scorers);
        if let Some(longest) = longest_prompt(folders, config)? {
            let Longest {
                record,
                tokens,
                counts,
            } = longest;
            // Nothing can be cut to fit where there is no room at all.
            let refused = config.too_long == TooLong::Error || room.tokens == 0;
            if refused && tokens > room.tokens {
                return Err(room.refuse_prompt(&record, tokens)).context("ppo.prompts");
            }
            // A longer one is cut or left out.
            let tokens = tokens.min(room.tokens);
            let note = format!("the longest prompt has {tokens} tokens");
            return Ok(Self {
                tokens,
                counts,
                note,
            });
        }
        let tokens = room.tokens;
        let whose = match pass < context {
            true => "ppo.micro_batch_tokens",
            false => "the context",
        };
        let note = format!(
            "the prompts cannot be counted before their file and the tokenizer are there; taken are {tokens} tokens, all that {whose} \
             leaves"
        );
        let counts = [usize::MAX; 2];
        Ok(Self {
            tokens,
            counts,
            note,
        })
    }
}

/// The least context of the policy and the reward models.
fn context(models: &Models) -> usize {
    let scorers = models.rewards.iter().map(|reward| &reward.decoder);
    let decoders = scorers.chain([&models.policy.decoder]);
    let contexts = decoders.map(|decoder| decoder.max_position_embeddings);
    contexts.min().unwrap_or(0)
}

/// The longest prompt.
pub struct Longest {
    /// Its record.
    pub record: Record,
    /// Its length.
    pub tokens: usize,
    /// How many prompts there are to train on, and to evaluate on.
    pub counts: [usize; 2],
}

/// The longest prompt to train or evaluate on, if the files and the tokenizer are there.
///
/// # Errors
/// If a file or the tokenizer cannot be read, or a record is no prompt.
pub fn longest_prompt(folders: Folders, config: &Ppo) -> Result<Option<Longest>> {
    let files: Vec<&Path> = std::iter::once(config.prompts.as_path())
        .chain(config.eval_prompts.as_deref())
        .collect();
    if !files.iter().all(|file| file.exists()) {
        return Ok(None);
    }
    let Some(tokenizer) = folders.tokenizer(&config.from)? else {
        return Ok(None);
    };
    let encoder = Encoder::new(&tokenizer, Limit::none(), TooLong::Error)?;
    let (mut longest, mut counts) = (None, [0; 2]);
    for (file, count) in files.into_iter().zip(&mut counts) {
        let keys = &config.records;
        let records = read_file(file, keys.columns.as_ref(), keys.bad_records)?.records;
        let found = measured(&encoder, records, keys.bad_records)?;
        *count = found.len();
        let found = found.into_iter();
        longest = found.chain(longest).max_by_key(|(_, tokens)| *tokens);
    }
    Ok(longest.map(|(record, tokens)| Longest {
        record,
        tokens,
        counts,
    }))
}

/// Records with the tokens of their prompts, without bad ones if these are left out.
fn measured(
    encoder: &Encoder,
    records: Vec<Record>,
    bad: BadRecords,
) -> Result<Vec<(Record, usize)>> {
    let all = encoder.prompts(&records);
    if all.is_ok() || bad == BadRecords::Error {
        let lengths = all?.items.into_iter().map(|prompt| prompt.ids.len());
        return Ok(records.into_iter().zip(lengths).collect());
    }
    let mut found = Vec::with_capacity(records.len());
    for record in records {
        if let Ok(prompts) = encoder.prompts(std::slice::from_ref(&record)) {
            found.push((record, prompts.items[0].ids.len()));
        }
    }
    Ok(found)
}
