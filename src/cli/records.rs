//! Flags of the commands that read records: columns, bad records and long records.

use anyhow::{Result, ensure};
use clap::Args;

use crate::config::{BadRecords, Columns, RecordKeys, TooLong};

/// Flags for reading records.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// What happens to a record that is longer than the context allows
    #[arg(long, value_name = "POLICY", default_value = "error", value_enum)]
    pub too_long: TooLong,

    /// What happens to a record that cannot be read or used
    #[arg(long, value_name = "POLICY", default_value = "error", value_enum)]
    bad_records: BadRecords,

    /// Largest share of bad records that --bad-records skip tolerates
    #[arg(long, value_name = "SHARE", default_value = "0.1", value_parser = share)]
    max_bad_share: f64,

    /// The column that holds a field, such as prompt=question; can be repeated
    #[arg(long, value_name = "NAME=COLUMN", value_parser = column)]
    columns: Vec<(String, String)>,
}

impl RecordArgs {
    /// The flags as the keys of a stage.
    ///
    /// # Errors
    /// A column or field that is given twice, or a share of bad records without `skip`.
    pub fn keys(&self) -> Result<RecordKeys> {
        let usual = RecordKeys::default();
        ensure!(
            self.max_bad_share == usual.max_bad_share || self.bad_records == BadRecords::Skip,
            "--max-bad-share has no effect without --bad-records skip; add that, or remove this \
             flag"
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
