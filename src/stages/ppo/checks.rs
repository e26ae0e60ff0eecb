//! Checks of `[ppo]` before a run's first stage: its reward programs, and the first records of its
//! files. The roles are checked when their layout is planned.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::config::{BadRecords, Ppo, RewardKind, TooLong};
use crate::data::DataError;
use crate::data::example::{Encoder, Limit};
use crate::data::records::Record;
use crate::reward::{RewardBatch, RewardInput, Rewards};
use crate::stages::dataset::read_source;
use crate::stages::first_records::{FIRST, RecordReader, check_documents, check_sources};

/// Checks that the reward programs of `[ppo]` exist.
///
/// # Errors
/// A program that is neither a file nor in a folder of `PATH`.
pub fn check_programs(ppo: &Ppo) -> Result<()> {
    for component in &ppo.rewards {
        let RewardKind::Program(program) = &component.kind else {
            continue;
        };
        if let Some(program) = program.command.first() {
            ensure!(
                is_found(program),
                "reward `{}`: the program `{program}` is not there; check ppo.rewards command and \
                 PATH",
                component.name
            );
        }
    }
    Ok(())
}

/// True if a program is a file, or lies in a folder of `PATH`.
fn is_found(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// Text of the completion that each reward program and endpoint scores before a run.
const TRIAL: &str = "Hello.";

/// Lets each reward program and endpoint score one completion of the first prompt.
///
/// # Errors
/// A program or endpoint that does not answer as it should, or prompts that cannot be read.
pub fn try_external_rewards(reader: &RecordReader, ppo: &Ppo) -> Result<()> {
    let first = ppo.prompts.sources.first();
    let Some(source) = first.filter(|source| source.path.exists()) else {
        return Ok(());
    };
    let mut records = read_source(source, &ppo.records)?.records;
    records.truncate(FIRST);
    let encoder = Encoder::new(reader.tokenizer, Limit::none(), TooLong::Error)?;
    let encoder = encoder.with_bad_records(ppo.records.bad_records);
    let prompts = encoder.prompts(&records)?.items;
    let Some(prompt) = prompts.first() else {
        return Ok(());
    };
    let response = reader.tokenizer.encode_text(TRIAL)?;
    let completion = RewardInput {
        prompt: &prompt.text,
        text: TRIAL,
        ids: &[prompt.ids.as_slice(), &response].concat(),
        states: None,
        response,
        fields: &prompt.fields,
    };
    let rewards = Rewards::external(&ppo.rewards)?;
    rewards.score(&RewardBatch {
        completions: &[completion],
        pass_tokens: ppo.training.micro_batch_tokens,
    })?;
    Ok(rewards.finish()?)
}

/// Checks prompts, with the fields that rules compare answers with, and the text of PPO-ptx. The
/// room for prompts is the plan's.
///
/// # Errors
/// A record that the stage would refuse, with the key of its file.
pub fn check_records(reader: &RecordReader, ppo: &Ppo) -> Result<()> {
    let (rules, keys) = (Rewards::rules(&ppo.rewards)?, &ppo.records);
    let encoder = Encoder::new(reader.tokenizer, Limit::none(), TooLong::Error)?;
    let encoder = encoder.with_bad_records(keys.bad_records);
    let check = |records: &[Record], bad: BadRecords| {
        encoder.prompts(records)?;
        if bad == BadRecords::Skip {
            return Ok(());
        }
        records.iter().try_for_each(|record| {
            let checked = rules.check(&record.fields);
            checked.map_err(|message| DataError::Record {
                at: record.source.clone(),
                message,
            })
        })
    };
    for (key, data) in [
        ("prompts", &ppo.prompts),
        ("eval_prompts", &ppo.eval_prompts),
    ] {
        check_sources(&data.sources, keys, check).with_context(|| format!("ppo.{key}"))?;
    }
    let texts = &ppo.update.ptx.ptx_data.sources;
    check_sources(texts, &ppo.ptx_records(), check_documents).context("ppo.ptx_data")
}
