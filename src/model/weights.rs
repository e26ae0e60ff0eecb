//! Reads and writes the tensors of a Hugging Face folder as `f32` values: one `model.safetensors`,
//! or shards with an index.
//!
//! Opening a folder reads only the headers of its files; a tensor takes memory when it is loaded.
//! Values are widened to `f32` on reading and rounded to nearest even on writing. Callers see
//! tensors in the engine's layout (projections `[out, in]`): GPT-2's transposed matrices are
//! transposed here only. Left out: pickled `.bin` checkpoints and quantised types. The format is
//! that of the `safetensors` crate; the index is transformers' `{"metadata", "weight_map"}`.

mod error;
mod heads;
mod save;
pub mod shard_name;
mod values;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensorError};
use serde_json::Value;

use super::config::{LM_HEAD, SCORE, StoredLayout, TensorSpec, weight, without_trunk};
use crate::files::regular;
use crate::files::stored::{StoredTensors, Unreadable};
use values::{transpose, widen};

pub use crate::config::SaveDtype;
pub use error::WeightsError;
pub use save::{DEFAULT_MAX_SHARD_BYTES, save, save_file};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The weights of a model folder, open for reading.
#[derive(Debug)]
pub struct Weights {
    folder: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorEntry>,
}

#[derive(Debug)]
struct Shard {
    file: PathBuf,
    stored: StoredTensors,
    /// Metadata of the header.
    notes: HashMap<String, String>,
}

#[derive(Debug)]
struct TensorEntry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Range of the values, counted from the end of the header.
    range: Range<usize>,
}

impl Weights {
    /// Opens the weights in `folder`. As in transformers, a single file has precedence over an
    /// index.
    ///
    /// # Errors
    /// If there are no weights, a file is unreadable or truncated, or an index and its shards
    /// contradict each other.
    pub fn open(folder: &Path) -> Result<Self, WeightsError> {
        let mut weights = Self::none(folder);
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.is_file() {
            weights.add_shard(single)?;
        } else if index.is_file() {
            weights.add_index(&index)?;
        } else {
            return Err(no_weights(folder));
        }
        Ok(weights)
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// If it cannot be read or is not such a file.
    pub fn open_file(file: PathBuf) -> Result<Self, WeightsError> {
        let mut weights = Self::none(file.parent().unwrap_or(Path::new("")));
        weights.add_shard(file)?;
        Ok(weights)
    }

    /// Whether `folder` has a weights file or an index of weights files.
    pub fn are_in(folder: &Path) -> bool {
        folder.join(SINGLE).is_file() || folder.join(INDEX).is_file()
    }

    fn none(folder: &Path) -> Self {
        Weights {
            folder: folder.to_owned(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
        }
    }

    /// The metadata under `key` in the headers of all files; `None` if it is absent or different in
    /// one of them, because another program may have rewritten that file.
    pub fn note(&self, key: &str) -> Option<&str> {
        let mut notes = self.shards.iter().map(|shard| shard.notes.get(key));
        let first = notes.next()??;
        let agrees = |note: Option<&String>| note == Some(first);
        notes.all(agrees).then_some(first)
    }

    /// The names in the files, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Name, shape and values of every float tensor as the files store it, for models other than
    /// decoders.
    ///
    /// # Errors
    /// If a file cannot be read, for each tensor in it.
    pub fn floats(&self) -> impl Iterator<Item = Result<(&str, &[usize], Vec<f32>), WeightsError>> {
        self.tensors.iter().filter_map(|(name, entry)| {
            let values = self.values(entry).transpose()?;
            Some(values.map(|values| (name.as_str(), entry.shape.as_slice(), values)))
        })
    }

    /// The values of a tensor in the file's layout; `None` for a type that is not a plain float.
    fn values(&self, entry: &TensorEntry) -> Result<Option<Vec<f32>>, WeightsError> {
        let shard = &self.shards[entry.shard];
        let values = widen(&shard.stored, entry.range.clone(), entry.dtype);
        values.map_err(|source| WeightsError::Read {
            file: shard.file.clone(),
            source,
        })
    }

    /// The values of a tensor, in the engine's shape and layout.
    ///
    /// Tensors of a checkpoint of the bare decoder, which lacks the prefix `model.` or
    /// `transformer.`, are found too.
    ///
    /// # Errors
    /// If the tensor is missing, has another shape, or is not a float of 16, 32 or 64 bits.
    pub fn load(&self, spec: &TensorSpec) -> Result<Vec<f32>, WeightsError> {
        let (name, entry) = self.entry(spec)?;
        let values = self.values(entry)?;
        let values = values.ok_or_else(|| self.wrong_type(name, entry))?;
        Ok(match (spec.layout, entry.shape.as_slice()) {
            (StoredLayout::Conv1d, &[rows, columns]) => transpose(&values, rows, columns),
            _ => values,
        })
    }

    /// The entry of a tensor, with its name in the file, if it has the right shape.
    fn entry(&self, spec: &TensorSpec) -> Result<(&str, &TensorEntry), WeightsError> {
        let (name, entry) = self.resolve(&spec.name).ok_or_else(|| self.missing(spec))?;
        let expected = spec.stored_shape();
        match entry.shape == expected {
            true => Ok((name, entry)),
            false => Err(WeightsError::Shape {
                name: name.to_owned(),
                file: self.shards[entry.shard].file.clone(),
                found: entry.shape.clone(),
                expected,
            }),
        }
    }

    fn wrong_type(&self, name: &str, entry: &TensorEntry) -> WeightsError {
        WeightsError::Dtype {
            name: name.to_owned(),
            file: self.shards[entry.shard].file.clone(),
            found: entry.dtype,
        }
    }

    /// Checks that the files hold no tensors beyond `specs`: a layer or a bias left out would
    /// silently give wrong results.
    ///
    /// # Errors
    /// If the files hold a tensor that is not in `specs` and is not known to be without effect.
    pub fn refuse_unexpected(&self, specs: &[TensorSpec]) -> Result<(), WeightsError> {
        let names = self.unexpected(specs);
        if names.is_empty() {
            return self.check_heads(specs);
        }
        Err(WeightsError::Unexpected {
            place: self.place().to_owned(),
            names: names.into_iter().map(str::to_owned).collect(),
        })
    }

    /// Names in the files that are not in `specs`, ascending, except for buffers that transformers
    /// once saved (causal masks, rotary tables) and for heads that a tied or a scoring model does
    /// not use.
    fn unexpected(&self, specs: &[TensorSpec]) -> Vec<&str> {
        let used: BTreeSet<&str> = specs
            .iter()
            .filter_map(|spec| Some(self.resolve(&spec.name)?.0))
            .collect();
        self.names()
            .filter(|name| !used.contains(name) && !is_known_surplus(name))
            .collect()
    }

    /// The entry of the tensor `name`, with its name in the file.
    fn resolve(&self, name: &str) -> Option<(&str, &TensorEntry)> {
        std::iter::once(name)
            .chain(without_trunk(name))
            .find_map(|name| self.tensors.get_key_value(name))
            .map(|(name, entry)| (name.as_str(), entry))
    }

    fn missing(&self, spec: &TensorSpec) -> WeightsError {
        let likeness = |name: &str| strsim::normalized_levenshtein(name, &spec.name);
        let nearest = self
            .names()
            .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
            .filter(|name| likeness(name) > 0.5);
        WeightsError::Missing {
            name: spec.name.clone(),
            place: self.place().to_owned(),
            nearest: nearest.map(str::to_owned),
        }
    }

    /// The only file, or the folder of several files.
    fn place(&self) -> &Path {
        match self.shards.as_slice() {
            [shard] => &shard.file,
            _ => &self.folder,
        }
    }

    /// Opens `file` and lists its tensors.
    fn add_shard(&mut self, file: PathBuf) -> Result<(), WeightsError> {
        let stored = StoredTensors::open(&file).map_err(|why| unreadable(&file, why))?;
        let metadata = stored.header();
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            let entry = TensorEntry {
                shard,
                dtype: info.dtype,
                shape: info.shape.clone(),
                range: info.data_offsets.0..info.data_offsets.1,
            };
            if self.tensors.insert(name.clone(), entry).is_some() {
                let problem = format!("tensor `{name}` is in two of its shards");
                let file = self.folder.join(INDEX);
                return Err(WeightsError::Index { file, problem });
            }
        }
        let notes = metadata.metadata().clone().unwrap_or_default();
        self.shards.push(Shard {
            file,
            stored,
            notes,
        });
        Ok(())
    }

    /// Opens the shards that `index` names, in order of their names, and checks that each has the
    /// tensors that the index lists.
    fn add_index(&mut self, index: &Path) -> Result<(), WeightsError> {
        let problem = |problem: String| WeightsError::Index {
            file: index.to_owned(),
            problem,
        };
        let places = read_index(index)?;
        let files: BTreeSet<&String> = places.values().collect();
        for name in files {
            let file = self.folder.join(name);
            if !file.is_file() {
                return Err(problem(format!("its shard `{name}` is not in the folder")));
            }
            self.add_shard(file)?;
        }
        for (name, shard) in &places {
            let found = self
                .tensors
                .get(name)
                .map(|entry| &self.shards[entry.shard].file);
            if found != Some(&self.folder.join(shard)) {
                return Err(problem(format!("tensor `{name}` is not in `{shard}`")));
            }
        }
        Ok(())
    }
}

/// The `weight_map` of an index: tensor name to shard file. A shard is a plain file name, so that
/// an index cannot name files outside its folder.
fn read_index(index: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let problem = |problem: String| WeightsError::Index {
        file: index.to_owned(),
        problem,
    };
    let text = regular::read(index).map_err(|source| WeightsError::Read {
        file: index.to_owned(),
        source,
    })?;
    let parsed: Value =
        serde_json::from_slice(&text).map_err(|error| problem(format!("not JSON ({error})")))?;
    let map = parsed
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| problem("no object `weight_map`".into()))?;
    let place = |(name, shard): (&String, &Value)| match shard.as_str() {
        Some(shard) => match shard_name::check(shard) {
            Ok(()) => Ok((name.clone(), shard.to_owned())),
            Err(why) => Err(problem(format!(
                "`weight_map` maps `{name}` to {}, which is not a file name of weights: {why}",
                shard_name::shown(shard)
            ))),
        },
        None => Err(problem(format!(
            "`weight_map` maps `{name}` to {shard}, which is not a file name"
        ))),
    };
    map.iter().map(place).collect()
}

fn no_weights(folder: &Path) -> WeightsError {
    let hint = if !folder.is_dir() {
        "there is no such folder"
    } else if folder.join("pytorch_model.bin").exists()
        || folder.join("pytorch_model.bin.index.json").exists()
    {
        "convert pytorch_model.bin with transformers' `save_pretrained`"
    } else {
        "name a folder that holds a Hugging Face model"
    };
    WeightsError::NoWeights {
        folder: folder.to_owned(),
        hint,
    }
}

fn unreadable(file: &Path, why: Unreadable) -> WeightsError {
    match why {
        Unreadable::Format {
            source,
            head,
            bytes,
        } => malformed(file, &head, bytes, source),
        Unreadable::Io(source) => WeightsError::Read {
            file: file.to_owned(),
            source,
        },
    }
}

/// The error of a file of `found` bytes that begins with `head` and has no valid header.
fn malformed(file: &Path, head: &[u8], found: u64, source: SafeTensorError) -> WeightsError {
    let file = file.to_owned();
    if head.starts_with(b"version https://git-lfs") {
        return WeightsError::LfsPointer { file };
    }
    match (source, declared_bytes(head)) {
        (SafeTensorError::HeaderTooSmall, _) => WeightsError::Truncated {
            file,
            found,
            expected: size_of::<u64>() as u64,
        },
        (
            SafeTensorError::InvalidHeaderLength | SafeTensorError::MetadataIncompleteBuffer,
            Some(expected),
        ) if found < expected => WeightsError::Truncated {
            file,
            found,
            expected,
        },
        (source, _) => WeightsError::NotSafetensors { file, source },
    }
}

/// The file size that a header declares: eight bytes, the header, and the values up to the end of
/// the last tensor. Without the values if the header itself is truncated.
fn declared_bytes(bytes: &[u8]) -> Option<u64> {
    let length = u64::from_le_bytes(*bytes.first_chunk()?);
    let start = length.checked_add(size_of::<u64>() as u64)?;
    let header = bytes.get(size_of::<u64>()..usize::try_from(start).ok()?);
    let Some(header) = header.and_then(|text| serde_json::from_slice::<Value>(text).ok()) else {
        return Some(start);
    };
    let ends = header.as_object()?.values();
    let last = ends.filter_map(|info| info.get("data_offsets")?.get(1)?.as_u64());
    start.checked_add(last.max().unwrap_or(0))
}

/// Whether a checkpoint may hold this tensor beyond the model's own: an old buffer, or an unused
/// head.
fn is_known_surplus(name: &str) -> bool {
    [LM_HEAD, SCORE].iter().any(|head| name == weight(head))
        || name.ends_with(".attn.bias")
        || name.ends_with(".attn.masked_bias")
        || name.ends_with("rotary_emb.inv_freq")
}

#[cfg(test)]
mod tests;
