//! Flags of the commands that read records: their columns, and what happens to those that are wrong or too long.

use anyhow::{Result, ensure};
use clap::Args;

use crate::config::{BadRecords, Columns, RecordKeys, TooLong};

/// Flags for reading records, and for those that are wrong or too long.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// A record longer than the context allows: error stops and names it, skip leaves it out, truncate cuts the start of a prompt
    /// or the end of a text to score
    #[arg(long, value_name = "POLICY", default_value = "error", value_parser = too_long)]
    pub too_long: TooLong,

    /// A record that cannot be read or used: error stops and names it, skip leaves it out and names the first ten
    #[arg(long, value_name = "POLICY", default_value = "error", value_parser = bad_records)]
    bad_records: BadRecords,

    /// Largest share of bad records that skip leaves out; the command fails if more are bad
    #[arg(long, value_name = "SHARE", default_value = "0.1", value_parser = share)]
    max_bad_share: f64,

    /// A column that is read under another name, such as prompt=question; may be given several times
    #[arg(long, value_name = "NAME=COLUMN", value_parser = column)]
    columns: Vec<(String, String)>,
}

impl RecordArgs {
    /// The flags as the keys that stages have.
    ///
    /// # Errors
    /// A column or a name that is given twice, or a share of bad records where they are errors.
    pub fn keys(&self) -> Result<RecordKeys> {
        let usual = RecordKeys::default();
        ensure!(
            self.max_bad_share == usual.max_bad_share || self.bad_records == BadRecords::Skip,
            "--max-bad-share is of no use unless bad records are left out; add --bad-records skip, or leave it out"
        );
        Ok(RecordKeys {
            columns: (!self.columns.is_empty())
                .then(|| self.columns())
                .transpose()?,
            bad_records: self.bad_records,
            max_bad_share: self.max_bad_share,
        })
    }

    fn columns(&self) -> Result<Columns> {
        let mut columns = Columns::new();
        for (name, column) in &self.columns {
            ensure!(
                columns.values().all(|other| other != column),
                "--columns {name}={column}: this column is read under two names; keep one of them"
            );
            let other = columns.insert(name.clone(), column.clone());
            ensure!(
                other.is_none(),
                "--columns {name}={column}: `{name}` is read from two columns; keep one of them"
            );
        }
        Ok(columns)
    }
}

fn column(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, column)) if !name.is_empty() && !column.is_empty() => {
            Ok((name.to_owned(), column.to_owned()))
        }
        _ => Err("expected NAME=COLUMN, such as prompt=question".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1; 0.1 is one record in ten".to_owned())
}

fn too_long(text: &str) -> Result<TooLong, String> {
    match text {
        "error" => Ok(TooLong::Error),
        "skip" => Ok(TooLong::Skip),
        "truncate" => Ok(TooLong::Truncate),
        _ => Err("expected error, skip or truncate".to_owned()),
    }
}

fn bad_records(text: &str) -> Result<BadRecords, String> {
    match text {
        "error" => Ok(BadRecords::Error),
        "skip" => Ok(BadRecords::Skip),
        _ => Err("expected error or skip".to_owned()),
    }
}
