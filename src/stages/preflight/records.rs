//! The first records of each data file, read as their stage reads them.

use anyhow::{Context as _, Result};

use crate::config::{BadRecords, Data, Ppo, RecordKeys, Source, Stage, TooLong};
use crate::data::example::{Encoder, Limit, encode_documents};
use crate::data::records::Record;
use crate::data::tokenizer::Tokenizer;
use crate::data::{self, DataError};
use crate::reward::Rewards;
use crate::stages::dataset::read_source;
use crate::stages::plan::models::Folders;

/// Records of a data file that are read: enough to meet a wrong shape, few enough to cost no time.
const FIRST: usize = 64;

/// Reads the first records of the files that exist as `stage` will read them.
///
/// Lengths are not checked here: a record that is too long may be cut or skipped, and the room for prompts is the plan's. Nor are
/// records of a stage that leaves out bad ones.
///
/// # Errors
/// A record or a template that the stage would refuse, with the key of its file.
pub fn check(folders: Folders, stage: Stage, tokenizer: &Tokenizer) -> Result<()> {
    let config = folders.0;
    let encoder = || Encoder::new(tokenizer, Limit::none(), TooLong::Error);
    if let (Stage::Pretrain, Some(pretrain)) = (stage, &config.pretrain) {
        let data = [&pretrain.data, &pretrain.eval_data];
        let documents = |records: &[Record]| encode_documents(tokenizer, records).map(drop);
        return supervised(stage, data, &pretrain.records, documents);
    }
    if let (Stage::Sft, Some(sft)) = (stage, &config.sft) {
        let (encoder, data) = (encoder()?, [&sft.data, &sft.held_out.eval_data]);
        let examples = |records: &[Record]| encoder.examples(records).map(drop);
        return supervised(stage, data, &sft.records, examples);
    }
    if let (Stage::Dpo, Some(dpo)) = (stage, &config.dpo) {
        let (encoder, data) = (encoder()?, [&dpo.data, &dpo.held_out.eval_data]);
        let pairs = |records: &[Record]| encoder.direct_pairs(records).map(drop);
        return supervised(stage, data, &dpo.records, pairs);
    }
    if let (Stage::Reward | Stage::Judge, Some(reward)) = (stage, folders.reward(stage)) {
        let (encoder, data) = (encoder()?, [&reward.data, &reward.held_out.eval_data]);
        let pairs = |records: &[Record]| encoder.pairs(records).map(drop);
        return supervised(stage, data, &reward.records, pairs);
    }
    match (stage, &config.ppo) {
        (Stage::Ppo, Some(ppo)) => prompts(tokenizer, &encoder()?, ppo),
        _ => Ok(()),
    }
}

/// Checks the files of `data` and `eval_data`.
fn supervised(
    stage: Stage,
    data: [&Data; 2],
    keys: &RecordKeys,
    check: impl Fn(&[Record]) -> data::Result<()>,
) -> Result<()> {
    for (key, data) in ["data", "eval_data"].into_iter().zip(data) {
        let checked = data
            .sources
            .iter()
            .try_for_each(|source| first(source, keys, &check));
        checked.with_context(|| format!("[{stage}] {key}"))?;
    }
    Ok(())
}

/// Checks prompts, with the fields that rules compare answers with, and the text of PPO-ptx.
fn prompts(tokenizer: &Tokenizer, encoder: &Encoder, ppo: &Ppo) -> Result<()> {
    let (rules, keys) = (Rewards::rules(&ppo.rewards)?, &ppo.records);
    let check = |records: &[Record]| {
        encoder.prompts(records)?;
        records.iter().try_for_each(|record| {
            let checked = rules.check(&record.fields);
            checked.map_err(|message| DataError::Record {
                at: record.source.clone(),
                message,
            })
        })
    };
    let files = [
        ("prompts", Some(&ppo.prompts)),
        ("eval_prompts", ppo.eval_prompts.as_ref()),
    ];
    for (key, file) in files {
        let mut source = file.map(Source::whole).into_iter();
        let checked = source.try_for_each(|source| first(&source, keys, check));
        checked.with_context(|| format!("ppo.{key}"))?;
    }
    let documents = |records: &[Record]| encode_documents(tokenizer, records).map(drop);
    let mut text = ppo.update.ptx.ptx_data.sources.iter();
    text.try_for_each(|source| first(source, &ppo.ptx_records(), documents))
        .context("ppo.ptx_data")
}

/// Checks the first records of a file, if it exists and bad ones are errors.
fn first(
    source: &Source,
    keys: &RecordKeys,
    check: impl Fn(&[Record]) -> data::Result<()>,
) -> data::Result<()> {
    if !source.path.exists() || keys.bad_records == BadRecords::Skip {
        return Ok(());
    }
    let mut records = read_source(source, keys)?.records;
    records.truncate(FIRST);
    check(&records)
}
