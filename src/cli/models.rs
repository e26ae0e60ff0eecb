//! Flags of the commands that read a model: `score` and `export`.

use std::path::PathBuf;

use clap::Args;

use super::{MOST_AT_ONCE, RecordArgs, up_to};
use crate::config::{Arithmetic, Device, SaveDtype, ScoreAt};

/// Flags of `score`.
#[derive(Clone, Debug, Args)]
pub struct ScoreArgs {
    /// The model: a Hugging Face folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,

    /// An adapter on it: a PEFT folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,

    /// The texts: JSON Lines, CSV or Parquet
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,

    /// File for the scores: JSON Lines; replaces an existing file at the end
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Flags for reading records.
    #[command(flatten)]
    pub records: RecordArgs,

    /// Token at which a reward model's score is read; by default, as its folder was trained
    #[arg(long, value_name = "NAME", value_enum)]
    pub score_at: Option<ScoreAt>,

    /// Number of sequences scored at the same time; results do not depend on it
    #[arg(long, value_name = "N", default_value = "32", value_parser = up_to::<MOST_AT_ONCE>)]
    pub batch: usize,

    /// Device to compute on: cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: Device,

    /// How the CPU computes matrix products; training uses fast unless run.arithmetic says
    /// otherwise
    #[arg(long, value_name = "NAME", default_value = "portable", value_enum)]
    pub arithmetic: Arithmetic,
}

/// Flags of `export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// The model that the adapter was trained on: a Hugging Face folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,

    /// The adapter: a PEFT folder
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,

    /// Folder for the merged model: a new or an empty one
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Number type of the merged weights
    #[arg(long, value_name = "TYPE", default_value = "float32", value_enum)]
    pub dtype: SaveDtype,
}
