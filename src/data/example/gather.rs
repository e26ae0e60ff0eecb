//! Encodes many records in parallel, and applies the policies for bad and for long records.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::limits::LengthOutcome;
use super::{Encoded, Encoder, Limit, TooLongCounts};
use crate::config::BadRecords;
use crate::data::error::{DataError, Result};
use crate::data::records::shapes::{RecordTask, Style};
use crate::data::records::{LeftOut, Record};
use crate::terminal::Phase;

impl Encoder<'_> {
    /// Encodes in parallel; an error names the first bad record in the file's order.
    pub(super) fn gather<T: Send>(
        &self,
        task: RecordTask,
        records: &[Record],
        encode: impl Fn(&Record) -> Result<LengthOutcome<T>> + Sync + Send,
    ) -> Result<Encoded<T>> {
        let phase = (records.len() > 1).then(|| Phase::counted("tokenizing", records.len()));
        let encode_one = |record: &Record| {
            let outcome = encode(&*self.shaped(record, task)?);
            phase.iter().for_each(|phase| phase.add(1));
            outcome
        };
        let outcomes: Vec<Result<LengthOutcome<T>>> = records.par_iter().map(encode_one).collect();
        let mut encoded = Encoded {
            items: Vec::with_capacity(outcomes.len()),
            too_long: TooLongCounts::default(),
            bad: LeftOut::default(),
            unused: unused(records, task, self.style()),
        };
        for outcome in outcomes {
            match outcome {
                Ok(outcome) => encoded.items.extend(encoded.too_long.count(outcome)),
                Err(error) => encoded.bad.leave_out(error, self.bad_records)?,
            }
        }
        match encoded.items.is_empty() {
            true => Err(self.none_left(records, &encoded.bad)),
            false => Ok(encoded),
        }
    }

    fn none_left(&self, records: &[Record], bad: &LeftOut) -> DataError {
        let file = records.first().map_or("the dataset".into(), |record| {
            record.source.file.display().to_string()
        });
        let (count, Limit { words, mend, .. }) = (records.len(), &self.limit);
        let long = count - bad.count;
        let why = match (bad.count, long) {
            (0, 0) => "every record is bad".to_owned(),
            (0, _) => format!("all {count} are too long, for {words}; {mend}"),
            (_, 0) => format!("all {count} are bad\n{}", bad.lines()),
            (bad_ones, _) => format!(
                "{long} are too long, for {words}, and {bad_ones} are bad; {mend}\n{}",
                bad.lines()
            ),
        };
        DataError::Invalid(format!("{file}: no record is left: {why}"))
    }
}

/// Fields of any record that the task does not read.
fn unused(records: &[Record], task: RecordTask, style: Style) -> Vec<String> {
    let names = records.iter().flat_map(|record| record.unused(task, style));
    let names: BTreeSet<&str> = names.collect();
    names.into_iter().map(str::to_owned).collect()
}

/// Records with a document in `text`; `bad` is the policy for records without one.
///
/// # Errors
/// If a record has no `text` and bad records are errors.
pub fn documents(records: Vec<Record>, bad: BadRecords) -> Result<Encoded<Record>> {
    let unused = unused(&records, RecordTask::Documents, Style::Plain);
    let mut encoded = Encoded {
        items: Vec::with_capacity(records.len()),
        too_long: TooLongCounts::default(),
        bad: LeftOut::default(),
        unused,
    };
    for record in records {
        let shaped = record.shaped(RecordTask::Documents, Style::Plain);
        match shaped.and_then(|shaped| shaped.text().map(|_| ())) {
            Ok(()) => encoded.items.push(record),
            Err(error) => encoded.bad.leave_out(error, bad)?,
        }
    }
    Ok(encoded)
}
