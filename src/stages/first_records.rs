//! The first records of each data file, read as their stage reads them, before any stage runs.

use anyhow::{Context as _, Result};

use super::dataset::read_source;
use super::examples::limit;
use crate::config::{BadRecords, Data, DataSource, ExampleKeys, RecordKeys, Stage, TooLong};
use crate::data;
use crate::data::example::{Encoder, Limit, documents};
use crate::data::records::Record;
use crate::data::tokenizer::Tokenizer;

/// The number of records that are checked in a data file: enough to find a wrong format, few enough
/// to take little time beside reading the file.
pub const FIRST: usize = 64;

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
}

/// Checks that records have text. The text is not tokenized, because a document may be a whole
/// file.
///
/// # Errors
/// A record without text, where such are errors.
pub fn check_documents(records: &[Record], bad: BadRecords) -> data::Result<()> {
    documents(records.to_vec(), bad).map(drop)
}

/// Checks the first records of the files of `data` and `eval_data` that exist.
///
/// # Errors
/// A record or a template that the stage would refuse, with the key of its file.
pub fn check_data(
    stage: Stage,
    data: [&Data; 2],
    keys: &RecordKeys,
    check: impl Fn(&[Record], BadRecords) -> data::Result<()>,
) -> Result<()> {
    for (key, data) in ["data", "eval_data"].into_iter().zip(data) {
        check_sources(&data.sources, keys, &check).with_context(|| format!("[{stage}] {key}"))?;
    }
    Ok(())
}

/// Checks the first records of each file that exists. If bad records are left out, a file is
/// refused only if all of its first records are bad and the stage does not allow that share.
///
/// # Errors
/// The errors of `check`, or a file that cannot be read.
pub fn check_sources(
    sources: &[DataSource],
    keys: &RecordKeys,
    check: impl Fn(&[Record], BadRecords) -> data::Result<()>,
) -> data::Result<()> {
    for source in sources.iter().filter(|source| source.path.exists()) {
        let mut records = read_source(source, keys)?.records;
        let most_bad = keys.max_bad_share * records.len() as f64;
        records.truncate(FIRST);
        let may_skip = keys.bad_records == BadRecords::Skip && records.len() as f64 <= most_bad;
        if let (Err(error), false) = (check(&records, keys.bad_records), may_skip) {
            return Err(error);
        }
    }
    Ok(())
}
