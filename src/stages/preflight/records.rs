//! The first records of each data file, read as their stage reads them.

use anyhow::{Context as _, Result};

use crate::config::{BadRecords, Data, DataSource, ExampleKeys, Ppo, RecordKeys, Stage, TooLong};
use crate::data::example::{Encoder, Limit, documents, encode_documents};
use crate::data::records::Record;
use crate::data::tokenizer::Tokenizer;
use crate::data::{self, DataError};
use crate::reward::Rewards;
use crate::stages::dataset::read_source;
use crate::stages::examples::limit;

/// The number of records that are checked in a data file: enough to find a wrong format, few enough
/// to take little time beside reading the file.
const FIRST: usize = 64;

/// Reads records as a stage will read them.
pub struct RecordReader<'a> {
    /// The stage.
    pub stage: Stage,
    /// The tokenizer of the stage, or one that refuses the same records.
    pub tokenizer: &'a Tokenizer,
    /// The context of the stage's model, in tokens; `None` if the tokenizer is not the stage's, so
    /// that lengths are not known.
    pub context: Option<usize>,
}

impl<'a> RecordReader<'a> {
    /// An encoder of examples. Lengths count where the stage refuses records that are too long.
    ///
    /// # Errors
    /// The errors of [`Encoder::new`].
    pub fn encoder(&self, keys: &ExampleKeys) -> data::Result<Encoder<'a>> {
        let (stage, policy) = (self.stage, keys.too_long);
        let limit = match (policy, self.context) {
            (TooLong::Error, Some(context)) => {
                limit(stage, keys.max_length, context).or_other_policy(stage.name(), policy)
            }
            _ => Limit::none(),
        };
        let encoder = Encoder::new(self.tokenizer, limit, policy)?;
        Ok(encoder.with_bad_records(keys.records.bad_records))
    }

    /// Reads records as text.
    ///
    /// # Errors
    /// A record without text, where such are errors.
    pub fn documents(&self, records: &[Record], bad: BadRecords) -> data::Result<()> {
        let read = documents(records.to_vec(), bad)?.items;
        encode_documents(self.tokenizer, &read).map(drop)
    }
}

/// Checks the first records of the files of `data` and `eval_data` that exist.
///
/// # Errors
/// A record or a template that the stage would refuse, with the key of its file.
pub fn check_files(
    stage: Stage,
    data: [&Data; 2],
    keys: &RecordKeys,
    check: impl Fn(&[Record], BadRecords) -> data::Result<()>,
) -> Result<()> {
    for (key, data) in ["data", "eval_data"].into_iter().zip(data) {
        let mut sources = data.sources.iter();
        let checked = sources.try_for_each(|source| first(source, keys, &check));
        checked.with_context(|| format!("[{stage}] {key}"))?;
    }
    Ok(())
}

/// Checks prompts, with the fields that rules compare answers with, and the text of PPO-ptx. The
/// room for prompts is the plan's.
///
/// # Errors
/// A record that the stage would refuse, with the key of its file.
pub fn prompts(reader: &RecordReader, ppo: &Ppo) -> Result<()> {
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
    let files = [
        ("prompts", Some(&ppo.prompts)),
        ("eval_prompts", ppo.eval_prompts.as_ref()),
    ];
    for (key, file) in files {
        let mut source = file.map(DataSource::whole).into_iter();
        let checked = source.try_for_each(|source| first(&source, keys, check));
        checked.with_context(|| format!("ppo.{key}"))?;
    }
    let documents = |records: &[Record], bad| reader.documents(records, bad);
    let mut text = ppo.update.ptx.ptx_data.sources.iter();
    text.try_for_each(|source| first(source, &ppo.ptx_records(), documents))
        .context("ppo.ptx_data")
}

/// Checks the first records of a file, if it exists. If bad records are left out, the file is
/// refused only if all of the first are bad and the stage does not allow that share.
fn first(
    source: &DataSource,
    keys: &RecordKeys,
    check: impl Fn(&[Record], BadRecords) -> data::Result<()>,
) -> data::Result<()> {
    if !source.path.exists() {
        return Ok(());
    }
    let mut records = read_source(source, keys)?.records;
    let most_bad = keys.max_bad_share * records.len() as f64;
    records.truncate(FIRST);
    match check(&records, keys.bad_records) {
        Err(_) if keys.bad_records == BadRecords::Skip && records.len() as f64 <= most_bad => {
            Ok(())
        }
        checked => checked,
    }
}
