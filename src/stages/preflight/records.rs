//! The first records of each data file, read as their stage reads them.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};

use crate::config::{Data, Ppo, Stage, TooLong};
use crate::data::example::{Encoder, Limit, encode_documents};
use crate::data::records::{Record, read};
use crate::data::tokenizer::Tokenizer;
use crate::reward::Rewards;
use crate::stages::dpo::predicted_pairs;
use crate::stages::plan::models::Folders;

/// Records of a data file that are read: enough to meet a wrong shape, few enough to cost no time.
const FIRST: usize = 64;

/// Reads the first records of the files that exist as `stage` will read them.
///
/// Lengths are not checked here: a record that is too long may be cut or skipped, and the room for prompts is the plan's.
///
/// # Errors
/// A record or a template that the stage would refuse, with the key of its file.
pub fn check(folders: Folders, stage: Stage, tokenizer: &Tokenizer) -> Result<()> {
    let config = folders.0;
    let encoder = || Encoder::new(tokenizer, Limit::none(), TooLong::Error);
    if let (Stage::Pretrain, Some(pretrain)) = (stage, &config.pretrain) {
        let documents = |records: &[Record]| Ok(encode_documents(tokenizer, records).map(drop)?);
        each(stage, "data", &pretrain.data, documents)?;
        return each(stage, "eval_data", &pretrain.eval_data, documents);
    }
    if let (Stage::Sft, Some(sft)) = (stage, &config.sft) {
        let encoder = encoder()?;
        let examples = |records: &[Record]| Ok(encoder.examples(records).map(drop)?);
        each(stage, "data", &sft.data, examples)?;
        return each(stage, "eval_data", &sft.held_out.eval_data, examples);
    }
    if let (Stage::Dpo, Some(dpo)) = (stage, &config.dpo) {
        let encoder = encoder()?;
        let pairs = |records: &[Record]| Ok(predicted_pairs(&encoder, records).map(drop)?);
        each(stage, "data", &dpo.data, pairs)?;
        return each(stage, "eval_data", &dpo.held_out.eval_data, pairs);
    }
    if let (Stage::Reward | Stage::Judge, Some(reward)) = (stage, folders.reward(stage)) {
        let encoder = encoder()?;
        let pairs = |records: &[Record]| Ok(encoder.pairs(records).map(drop)?);
        each(stage, "data", &reward.data, pairs)?;
        return each(stage, "eval_data", &reward.held_out.eval_data, pairs);
    }
    match (stage, &config.ppo) {
        (Stage::Ppo, Some(ppo)) => prompts(tokenizer, &encoder()?, ppo),
        _ => Ok(()),
    }
}

/// Checks prompts, with the fields that rules compare answers with, and the text of PPO-ptx.
fn prompts(tokenizer: &Tokenizer, encoder: &Encoder, ppo: &Ppo) -> Result<()> {
    let rules = Rewards::rules(&ppo.rewards)?;
    let train = Some(("prompts", ppo.prompts.as_path()));
    let held_out = ppo
        .eval_prompts
        .as_deref()
        .map(|file| ("eval_prompts", file));
    for (key, file) in train.into_iter().chain(held_out) {
        let check = |records: &[Record]| {
            encoder.prompts(records)?;
            records.iter().try_for_each(|record| {
                let checked = rules.check(&record.fields);
                checked.map_err(|lacks| anyhow!("{}: {lacks}", record.source))
            })
        };
        first(file, check).with_context(|| format!("ppo.{key}"))?;
    }
    let documents = |records: &[Record]| Ok(encode_documents(tokenizer, records).map(drop)?);
    each(Stage::Ppo, "ptx_data", &ppo.update.ptx.ptx_data, documents)
}

/// Checks the first records of each file of a `data` key.
fn each(
    stage: Stage,
    key: &str,
    data: &Data,
    check: impl Fn(&[Record]) -> Result<()>,
) -> Result<()> {
    data.sources
        .iter()
        .try_for_each(|source| first(&source.path, &check))
        .with_context(|| format!("[{stage}] {key}"))
}

/// Checks the first records of a file, if it exists.
fn first(file: &Path, check: impl Fn(&[Record]) -> Result<()>) -> Result<()> {
    if !file.exists() {
        return Ok(());
    }
    let mut records = read(file)?;
    records.truncate(FIRST);
    check(&records)
}
