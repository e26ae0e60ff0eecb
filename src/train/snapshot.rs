//! Trained parameters and optimizer moments, in and out of a checkpoint, as safetensors written tensor by tensor.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};

use super::checkpoint::{Checkpoint, CheckpointError, Writer};
use super::optimizer::AdamW;
use crate::model::Decoder;

/// An error of saving or restoring what is trained.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The file system refused.
    #[error("{}", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no safetensors.
    #[error("{}: not a safetensors file", .file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// A tensor is missing or of another size.
    #[error("{}: tensor {name} is missing or not {expected} f32 values; the model was another one when this was saved", .file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Elements needed.
        expected: usize,
    },
    /// A computation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";

/// Adds the trained parameters of `model` and the moments of `optimizer` to a checkpoint, under the name of their `role`.
///
/// # Errors
/// If a file cannot be written.
pub fn save(
    writer: &mut Writer,
    role: &str,
    model: &Decoder,
    optimizer: &AdamW,
) -> Result<(), SnapshotError> {
    let params = trained_values(model)?;
    writer.add_file(&params_file(role), |out| write_tensors(out, &params))?;
    let [first, second] = optimizer.moments()?;
    let moments = [
        (FIRST.to_owned(), vec![first.len()], first),
        (SECOND.to_owned(), vec![second.len()], second),
    ];
    Ok(writer.add_file(&moments_file(role), |out| write_tensors(out, &moments))?)
}

/// Puts back what [`save`] wrote; `steps` are those that the optimizer had taken.
///
/// # Errors
/// If a file or tensor is missing or of another size.
pub fn restore(
    checkpoint: &Checkpoint,
    role: &str,
    model: &Decoder,
    optimizer: &mut AdamW,
    steps: u64,
) -> Result<(), SnapshotError> {
    restore_params(&checkpoint.path(&params_file(role)), model)?;
    let moments = Tensors::open(&checkpoint.path(&moments_file(role)))?;
    let size = optimizer.moments()?[0].len();
    Ok(optimizer.restore(
        steps,
        moments.values(FIRST, size)?,
        moments.values(SECOND, size)?,
    )?)
}

/// Writes the trained parameters of `model` to a file of their own.
///
/// # Errors
/// If it cannot be written.
pub fn save_params(file: &Path, model: &Decoder) -> Result<(), SnapshotError> {
    let params = trained_values(model)?;
    let write = |out: &mut dyn Write| write_tensors(out, &params);
    super::durable::write_synced(file, write)
        .map(|_| ())
        .map_err(|source| SnapshotError::Io {
            file: file.to_owned(),
            source,
        })
}

/// Puts back what [`save_params`] wrote.
///
/// # Errors
/// If the file or a tensor is missing or of another size.
pub fn restore_params(file: &Path, model: &Decoder) -> Result<(), SnapshotError> {
    let tensors = Tensors::open(file)?;
    for param in model.params().trained() {
        let values = tensors.values(param.name(), param.value().elem_count())?;
        param.set(&candle_core::Tensor::from_vec(
            values,
            param.dims(),
            param.value().device(),
        )?)?;
    }
    Ok(())
}

fn params_file(role: &str) -> String {
    format!("{role}.safetensors")
}

fn moments_file(role: &str) -> String {
    format!("{role}-moments.safetensors")
}

type Named<'a> = (String, Vec<usize>, Cow<'a, [f32]>);

fn trained_values(model: &Decoder) -> candle_core::Result<Vec<Named<'static>>> {
    let value = |p: &std::sync::Arc<crate::ops::param::Param>| {
        Ok((
            p.name().to_owned(),
            p.dims().to_vec(),
            p.value().flatten_all()?.to_vec1::<f32>()?.into(),
        ))
    };
    model.params().trained().map(value).collect()
}

fn write_tensors(out: &mut dyn Write, tensors: &[Named]) -> io::Result<()> {
    let mut end = 0;
    let info = |(name, shape, values): &Named| {
        let start = end;
        end += values.len() * size_of::<f32>();
        (
            name.clone(),
            TensorInfo {
                dtype: Dtype::F32,
                shape: shape.clone(),
                data_offsets: (start, end),
            },
        )
    };
    let metadata =
        Metadata::new(None, tensors.iter().map(info).collect()).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, _, values) in tensors {
        for block in values.chunks(1 << 14) {
            let bytes: Vec<u8> = block.iter().flat_map(|v| v.to_le_bytes()).collect();
            out.write_all(&bytes)?;
        }
    }
    Ok(())
}

struct Tensors {
    file: PathBuf,
    bytes: Mmap,
}

impl Tensors {
    fn open(file: &Path) -> Result<Self, SnapshotError> {
        let io = |source| SnapshotError::Io {
            file: file.to_owned(),
            source,
        };
        let opened = File::open(file).map_err(io)?;
        // SAFETY: checkpoints are written beside and renamed, never changed in place.
        let bytes = unsafe { Mmap::map(&opened) }.map_err(io)?;
        Ok(Self {
            file: file.to_owned(),
            bytes,
        })
    }

    fn values(&self, name: &str, expected: usize) -> Result<Vec<f32>, SnapshotError> {
        let parsed =
            SafeTensors::deserialize(&self.bytes).map_err(|source| SnapshotError::Format {
                file: self.file.clone(),
                source,
            })?;
        let values = parsed
            .tensor(name)
            .ok()
            .filter(|t| t.dtype() == Dtype::F32)
            .map(|t| {
                t.data()
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|b| f32::from_le_bytes(*b))
                    .collect::<Vec<_>>()
            });
        match values {
            Some(values) if values.len() == expected => Ok(values),
            _ => Err(SnapshotError::Tensor {
                file: self.file.clone(),
                name: name.to_owned(),
                expected,
            }),
        }
    }
}
