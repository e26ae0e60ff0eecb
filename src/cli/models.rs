//! Flags of the commands that read a model: `score` and `export`.

use std::path::PathBuf;

use clap::Args;

use super::{MOST_AT_ONCE, RecordArgs, up_to};
use crate::config::{Arithmetic, Device, ScoreAt};
use crate::model::weights::SaveDtype;

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

    /// Where scores go: a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Records that do not fit.
    #[command(flatten)]
    pub records: RecordArgs,

    /// The token at which a reward model is read: eos, the last one, or last_non_pad, the last one that is not padding; unless
    /// given, the model's folder says
    #[arg(long, value_name = "NAME")]
    pub score_at: Option<ScoreAt>,

    /// Sequences at once; the scores do not depend on it
    #[arg(long, value_name = "N", default_value = "32", value_parser = up_to::<MOST_AT_ONCE>)]
    pub batch: usize,

    /// What to compute on: cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: Device,

    /// How the CPU computes matrix products: fast takes the processor's matrix unit, as training does unless it is told otherwise;
    /// portable gives the same bits on every processor
    #[arg(long, value_name = "NAME", default_value = "portable")]
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

    /// Where the merged model goes: a folder, made if need be
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Type of its weights: float32, bfloat16 or float16
    #[arg(long, value_name = "TYPE", default_value = "float32", value_parser = save_dtype)]
    pub dtype: SaveDtype,
}

fn save_dtype(text: &str) -> Result<SaveDtype, String> {
    SaveDtype::from_torch_name(text).ok_or_else(|| {
        let names = SaveDtype::ALL.map(SaveDtype::torch_name);
        format!("expected one of {}", names.join(", "))
    })
}
