//! Flags of the commands that read records: what happens to those that are wrong or too long.

use clap::Args;

use crate::config::{BadRecords, TooLong};

/// What happens to records that are wrong or too long.
#[derive(Clone, Copy, Debug, Args)]
pub struct RecordArgs {
    /// A record longer than the context allows: error stops and names it, skip leaves it out, truncate cuts the start of a prompt
    /// or the end of a text to score
    #[arg(long, value_name = "POLICY", default_value = "error", value_parser = too_long)]
    pub too_long: TooLong,

    /// A record that cannot be read or used: error stops and names it, skip leaves it out and names the first ten
    #[arg(long, value_name = "POLICY", default_value = "error", value_parser = bad_records)]
    pub bad_records: BadRecords,
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
