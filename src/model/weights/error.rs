//! Errors of reading and writing the weights of a model folder.

use std::error::Error as StdError;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensorError};
use thiserror::Error;

use crate::config::SaveDtype;

/// An error of reading or writing the weights of a model folder, with the file and, if there is
/// one, the tensor.
#[derive(Debug, Error)]
#[allow(
    missing_docs,
    reason = "the messages state what variants and fields hold"
)]
pub enum WeightsError {
    #[error(
        "{}: no model.safetensors and no model.safetensors.index.json here; {hint}",
        .folder.display()
    )]
    NoWeights { folder: PathBuf, hint: &'static str },
    #[error("{}: cannot be read", .file.display())]
    Read {
        file: PathBuf,
        source: std::io::Error,
    },
    /// A file cannot be written; the error names it.
    #[error(transparent)]
    Write(#[from] std::io::Error),
    #[error(
        "{}: the file has {found} bytes, but its header needs {expected}; it was cut short, fetch \
         or copy it again",
        .file.display()
    )]
    Truncated {
        file: PathBuf,
        found: u64,
        expected: u64,
    },
    #[error(
        "{}: this is a Git LFS pointer instead of the weights; run `git lfs pull`",
        .file.display()
    )]
    LfsPointer { file: PathBuf },
    #[error("{}: not a safetensors file", .file.display())]
    NotSafetensors {
        file: PathBuf,
        source: SafeTensorError,
    },
    #[error("{}: {problem}; fetch the index and its shards again", .file.display())]
    Index { file: PathBuf, problem: String },
    #[error(
        "{}: no tensor `{name}`{}; config.json and the weights may be of different models",
        .place.display(),
        nearest_hint(.nearest)
    )]
    Missing {
        name: String,
        place: PathBuf,
        /// The most similar name in the files.
        nearest: Option<String>,
    },
    #[error(
        "{}: config.json does not describe {}; without them the results would be wrong: fetch \
         config.json and the weights of one model, and see num_hidden_layers, attention_bias and \
         mlp_bias",
        .place.display(),
        some_of(.names)
    )]
    Unexpected { place: PathBuf, names: Vec<String> },
    #[error(
        "{}: `lm_head.weight` and `{embedding}` differ, but tie_word_embeddings in config.json \
         says that they are one tensor; set it to false, or fetch config.json and the weights of \
         one model",
        .place.display()
    )]
    NotTied { place: PathBuf, embedding: String },
    #[error(
        "{}: tensor `{name}` has shape {found:?}, but config.json describes {expected:?}",
        .file.display()
    )]
    Shape {
        name: String,
        file: PathBuf,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error(
        "{}: tensor `{name}` holds {found:?}, which cannot be read; supported are F32, BF16, F16 \
         and F64 (quantised weights must be converted first)",
        .file.display()
    )]
    Dtype {
        name: String,
        file: PathBuf,
        found: Dtype,
    },
    #[error("tensor `{name}` is listed twice")]
    Duplicate { name: String },
    #[error("tensor `{name}` was given {found} values, its shape holds {expected}")]
    Length {
        name: String,
        found: usize,
        expected: usize,
    },
    #[error(
        "tensor `{name}` has the value {value}, too large for {dtype}; save as float32 or bfloat16"
    )]
    Overflow {
        name: String,
        value: f32,
        dtype: SaveDtype,
    },
    #[error("tensor `{name}` could not be fetched")]
    Fetch {
        name: String,
        source: Box<dyn StdError + Send + Sync>,
    },
}

/// The first few names in words, and the number of the others.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    let rest = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("the tensors {}{rest}", shown.join(", "))
}

fn nearest_hint(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!(" (the nearest is `{name}`)"),
        None => String::new(),
    }
}
