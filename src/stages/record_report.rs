//! Records that were cut or left out, and columns that were not read: noted when a stage starts,
//! and again in its closing table.

use anyhow::{Result, bail};

use crate::config::RecordKeys;
use crate::data::example::{Encoded, Limit, TooLongCounts};
use crate::data::records::{LeftOut, listed};
use crate::terminal;
use crate::train::summary::Summary;

/// The reports of a stage's data keys.
#[derive(Default)]
pub struct RecordReports {
    keys: Vec<RecordReport>,
    /// Other rows of the closing table.
    rows: Vec<(&'static str, String)>,
}

/// Records of one key, such as `sft.data`, that were cut or left out.
pub struct RecordReport {
    key: String,
    records: usize,
    too_long: TooLongCounts,
    bad: LeftOut,
    /// Each file with columns that were not read.
    unused: Vec<(String, Vec<String>)>,
}

impl RecordReport {
    /// The report of `key`, which has `records` records, among them the `bad` ones that cannot be
    /// read.
    pub fn new(key: String, records: usize, bad: LeftOut) -> Self {
        Self {
            key,
            records,
            too_long: TooLongCounts::default(),
            bad,
            unused: Vec::new(),
        }
    }

    /// Adds the counts of a file's records, and returns the encoded ones.
    pub fn take<T>(&mut self, file: &str, encoded: Encoded<T>) -> Vec<T> {
        self.too_long += encoded.too_long;
        self.bad += encoded.bad;
        if !encoded.unused.is_empty() {
            self.unused.push((file.to_owned(), encoded.unused));
        }
        encoded.items
    }

    /// Refuses too large a share of bad records.
    ///
    /// # Errors
    /// If their share is above `max_bad_share`.
    pub fn check(self, keys: &RecordKeys) -> Result<Self> {
        let stage = self.key.split('.').next().unwrap_or_default();
        let setting = format!("{stage}.max_bad_share");
        self.check_share(keys.max_bad_share, &setting)
    }

    /// Refuses a share of bad records above `most`, the value of `setting`.
    ///
    /// # Errors
    /// If the share is above `most`.
    pub fn check_share(self, most: f64, setting: &str) -> Result<Self> {
        let share = self.bad.count as f64 / self.records.max(1) as f64;
        if share > most {
            bail!(
                "{} of {} records are bad, a share of {share:.2}; {setting} allows {most}; \
                 correct them, or raise that limit\n{}",
                self.bad.count,
                self.records,
                self.bad.lines()
            );
        }
        Ok(self)
    }

    fn share(&self, count: usize) -> String {
        format!("{count} of {}", self.records)
    }

    /// Counts of records that were too long, and what was done with each kind.
    fn outcomes(&self) -> impl Iterator<Item = (usize, &'static str)> {
        let outcomes = [
            (self.too_long.truncated, "cut at the end"),
            (self.too_long.prompts_truncated, "cut at the prompt's start"),
            (self.too_long.skipped, "left out"),
        ];
        outcomes.into_iter().filter(|(count, _)| *count > 0)
    }

    fn note(&self, stage: &str, limit: &Limit) {
        let (key, Limit { words, mend, .. }) = (&self.key, limit);
        for (count, outcome) in self.outcomes() {
            let share = self.share(count);
            terminal::note(format_args!(
                "{stage}: {share} records of {key} are too long and were {outcome}: {words}; to \
                 change that, {mend}"
            ));
        }
        if self.bad.count > 0 {
            let (share, lines) = (self.share(self.bad.count), self.bad.lines());
            terminal::note(format_args!(
                "{stage}: {share} records of {key} are bad and were left out:\n{lines}"
            ));
        }
        for (file, columns) in &self.unused {
            terminal::note(format_args!(
                "{stage}: {file}: columns not used: {}",
                listed(columns)
            ));
        }
    }

    fn add_to(&self, table: &mut Summary) {
        for (count, outcome) in self.outcomes() {
            let name = format!("records of {} {outcome}", self.key);
            table.text(&name, "", &self.share(count));
        }
        if self.bad.count > 0 {
            let name = format!("bad records of {} left out", self.key);
            table.text(&name, "", &self.share(self.bad.count));
        }
    }
}

impl RecordReports {
    /// Adds the report of a key and notes it on the terminal; `limit` is the limit of the records'
    /// length.
    pub fn add(&mut self, stage: &str, report: RecordReport, limit: &Limit) {
        report.note(stage, limit);
        self.keys.push(report);
    }

    /// Adds a row to the closing table.
    pub fn add_row(&mut self, name: &'static str, value: String) {
        self.rows.push((name, value));
    }

    /// Adds rows to a closing table.
    pub fn add_to(&self, table: &mut Summary) {
        self.keys.iter().for_each(|report| report.add_to(table));
        for (name, value) in &self.rows {
            table.text(name, "", value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BadRecords;
    use crate::data::DataError;

    fn report(bad: usize, records: usize) -> RecordReport {
        let mut left_out = LeftOut::default();
        for i in 0..bad {
            let error = DataError::Invalid(format!("d.jsonl:{i}: broken"));
            left_out.leave_out(error, BadRecords::Skip).unwrap();
        }
        RecordReport::new("sft.data".to_owned(), records, left_out)
    }

    #[test]
    fn too_large_a_share_of_bad_records_fails() {
        let keys = RecordKeys::default();
        assert!(
            report(1, 10).check(&keys).is_ok(),
            "the share itself is allowed"
        );
        let error = report(2, 10)
            .check(&keys)
            .err()
            .expect("an error")
            .to_string();
        for part in [
            "2 of 10 records are bad",
            "sft.max_bad_share allows 0.1",
            "d.jsonl:1: broken",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_file_s_counts_and_columns_are_added() {
        let mut sum = report(1, 10);
        let encoded = |unused: &[&str]| Encoded {
            items: vec![7],
            too_long: TooLongCounts {
                truncated: 1,
                prompts_truncated: 2,
                skipped: 3,
            },
            bad: report(1, 1).bad,
            unused: unused.iter().map(|name| (*name).to_owned()).collect(),
        };
        assert_eq!(sum.take("a.jsonl", encoded(&["label"])), [7]);
        sum.take("b.jsonl", encoded(&[]));
        assert_eq!((sum.bad.count, sum.unused.len()), (3, 1));
        let outcomes: Vec<_> = sum.outcomes().collect();
        let expected = [
            (2, "cut at the end"),
            (4, "cut at the prompt's start"),
            (6, "left out"),
        ];
        assert_eq!(outcomes, expected);
    }
}
