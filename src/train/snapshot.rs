//! Trained parameters and optimizer moments, in and out of a checkpoint, as safetensors written
//! tensor by tensor.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::checkpoint::{Checkpoint, CheckpointError, Writer};
use super::durable::{self, on};
use super::optimizer::AdamW;
use crate::files::stored::{StoredTensors, Unreadable};
use crate::files::tensor_file::{Description, write_header, write_values};
use crate::model::Decoder;

/// An error of saving or restoring parameters and moments.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An I/O error, with the action and the path.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is no safetensors.
    #[error("{}: not a safetensors file", .file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// The error of the format.
        source: safetensors::SafeTensorError,
    },
    /// A tensor is missing or of another size.
    #[error("{}: tensor {name} is missing or not {expected} f32 values; the model was another one \
             when this was saved", .file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Number of elements that the parameter has.
        expected: usize,
    },
    /// A computation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";

/// Adds the trained parameters of `model` and the moments of `optimizer` to a checkpoint, under the
/// name of their `role`.
///
/// # Errors
/// If a file cannot be written.
pub fn save(
    writer: &mut Writer,
    role: &str,
    model: &Decoder,
    optimizer: &AdamW,
) -> Result<(), SnapshotError> {
    writer.add_file(&params_file(role), |out| write_params(out, model))?;
    let [first, second] = optimizer.moments()?;
    let moments = [(FIRST, &*first), (SECOND, &*second)];
    Ok(writer.add_file(&moments_file(role), |out| write_moments(out, &moments))?)
}

/// Restores the files of [`save`]; `steps` is the number of steps that the optimizer had taken.
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
    let size = optimizer.size();
    Ok(optimizer.restore(
        steps,
        moments.values(FIRST, size)?,
        moments.values(SECOND, size)?,
    )?)
}

/// Writes the trained parameters of `model` to a file, which is replaced atomically.
///
/// # Errors
/// If it cannot be written.
pub fn save_params(file: &Path, model: &Decoder) -> Result<(), SnapshotError> {
    Ok(durable::replace_file(file, |out| write_params(out, model))?)
}

/// Restores the file of [`save_params`].
///
/// # Errors
/// If the file or a tensor is missing or of another size.
pub fn restore_params(file: &Path, model: &Decoder) -> Result<(), SnapshotError> {
    let tensors = Tensors::open(file)?;
    for param in model.params().trained() {
        let values = tensors.values(param.name(), param.value().elem_count())?;
        param.overwrite(&values)?;
    }
    Ok(())
}

fn params_file(role: &str) -> String {
    format!("{role}.safetensors")
}

fn moments_file(role: &str) -> String {
    format!("{role}-moments.safetensors")
}

/// Writes the parameters one after the other, so that the host holds a copy of at most one.
fn write_params(out: &mut dyn Write, model: &Decoder) -> io::Result<()> {
    let params = || model.params().trained();
    let described = params().map(|p| described(p.name(), p.dims()));
    write_header(out, None, described)?;
    for param in params() {
        let written = param.read(|values| write_f32(out, values));
        written.map_err(io::Error::other)??;
    }
    Ok(())
}

fn write_moments(out: &mut dyn Write, moments: &[(&str, &[f32])]) -> io::Result<()> {
    let described = moments
        .iter()
        .map(|(name, values)| described(name, &[values.len()]));
    write_header(out, None, described)?;
    moments
        .iter()
        .try_for_each(|(_, values)| write_f32(out, values))
}

fn described(name: &str, shape: &[usize]) -> Description {
    Description {
        name: name.to_owned(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
    }
}

fn write_f32(out: &mut dyn Write, values: &[f32]) -> io::Result<()> {
    write_values(out, values, |value, bytes| {
        bytes.extend(value.to_le_bytes());
    })
}

/// A file that [`save`] or [`save_params`] wrote.
struct Tensors {
    file: PathBuf,
    stored: StoredTensors,
}

impl Tensors {
    fn open(file: &Path) -> Result<Self, SnapshotError> {
        let stored = StoredTensors::open(file).map_err(|why| match why {
            Unreadable::Io(error) => SnapshotError::Io(on("read", file)(error)),
            Unreadable::Format { source, .. } => SnapshotError::Format {
                file: file.to_owned(),
                source,
            },
        })?;
        Ok(Self {
            file: file.to_owned(),
            stored,
        })
    }

    fn values(&self, name: &str, expected: usize) -> Result<Vec<f32>, SnapshotError> {
        let info = self.stored.header().info(name);
        let info = info.filter(|t| t.dtype == Dtype::F32);
        let range = info.map_or(0..0, |t| t.data_offsets.0..t.data_offsets.1);
        if range.len() != expected * size_of::<f32>() {
            return Err(SnapshotError::Tensor {
                file: self.file.clone(),
                name: name.to_owned(),
                expected,
            });
        }
        let values = self.stored.values(range, f32::from_le_bytes);
        Ok(values.map_err(on("read", &self.file))?)
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::model::config::{Head, TensorSpec, is_embedding};
    use crate::ops::backend::Backend;
    use crate::ops::param::Trainability;

    /// A golden model whose embedding is frozen.
    fn model() -> Decoder {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/llama");
        let training = |spec: &TensorSpec| match is_embedding(&spec.name) {
            true => Trainability::Frozen,
            false => Trainability::Trained,
        };
        Decoder::load(&folder, Head::LanguageModel, 0, training, &Backend::CPU).unwrap()
    }

    fn values(model: &Decoder) -> Vec<Vec<f32>> {
        let read = |p: &std::sync::Arc<crate::ops::param::Param>| p.read(<[f32]>::to_vec).unwrap();
        model.params().trained().map(read).collect()
    }

    fn zero(model: &Decoder) {
        let trained = model.params().trained();
        trained.for_each(|p| p.update(|v| v.fill(0.0)).unwrap());
    }

    #[test]
    fn what_was_saved_comes_back_and_nothing_frozen_is_saved() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("best.safetensors");
        let model = model();
        let saved = values(&model);
        save_params(&file, &model).unwrap();
        zero(&model);
        restore_params(&file, &model).unwrap();
        assert!(values(&model) == saved);
        let names = Tensors::open(&file).unwrap().stored.header().offset_keys();
        let trained: Vec<&str> = model.params().trained().map(|p| p.name()).collect();
        assert_eq!(names, trained);
    }

    #[test]
    fn a_reader_keeps_the_old_bytes_while_the_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("best.safetensors");
        let model = model();
        save_params(&file, &model).unwrap();
        let old = Tensors::open(&file).unwrap();
        zero(&model);
        save_params(&file, &model).unwrap();
        let norm = |tensors: &Tensors| tensors.values("model.norm.weight", 32).unwrap();
        assert!(norm(&old).iter().any(|&v| v != 0.0));
        assert_eq!(norm(&Tensors::open(&file).unwrap()), [0.0; 32]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_tensor_of_another_size_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("best.safetensors");
        save_params(&file, &model()).unwrap();
        let tensors = Tensors::open(&file).unwrap();
        for (name, size) in [("model.norm.weight", 33), ("model.embed_tokens.weight", 1)] {
            let message = tensors.values(name, size).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        // Values of another type are refused even if they have as many bytes.
        let bytes = std::fs::read(&file).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
        let other = header.replace("F32", "I32");
        let whole = [&bytes[..8], other.as_bytes(), &bytes[8 + length..]].concat();
        std::fs::write(&file, whole).unwrap();
        let message = Tensors::open(&file)
            .unwrap()
            .values("model.norm.weight", 32);
        let message = message.unwrap_err().to_string();
        assert!(message.contains("model.norm.weight"), "{message}");
        std::fs::write(&file, "no tensors").unwrap();
        let refused = restore_params(&file, &model()).unwrap_err();
        assert!(
            refused.to_string().contains("best.safetensors"),
            "{refused}"
        );
    }
}
