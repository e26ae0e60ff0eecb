//! Writes tensors as `model.safetensors`, or as shards with an index if they are too large for one
//! file.
//!
//! One tensor is in memory at a time. Every file is written under a temporary name and renamed; the
//! index comes last, and only then files of an earlier layout are removed, so that a killed save
//! leaves a folder that still opens.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::fs;
use std::io::Write;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::{INDEX, SINGLE, WeightsError, transpose};
use crate::config::SaveDtype;
use crate::files::durable::{on, replace_file};
use crate::files::tensor_file::{Description, write_header, write_values};
use crate::model::config::{StoredLayout, TensorSpec};

/// Default size limit of a file, as in transformers: 5 GB.
pub const DEFAULT_MAX_SHARD_BYTES: u64 = 5_000_000_000;

impl SaveDtype {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            SaveDtype::Float32 => 4,
            SaveDtype::Bfloat16 | SaveDtype::Float16 => 2,
        }
    }

    fn stored(self) -> Dtype {
        match self {
            SaveDtype::Float32 => Dtype::F32,
            SaveDtype::Bfloat16 => Dtype::BF16,
            SaveDtype::Float16 => Dtype::F16,
        }
    }

    fn encode(self, value: f32, bytes: &mut Vec<u8>) {
        match self {
            SaveDtype::Float32 => bytes.extend(value.to_le_bytes()),
            SaveDtype::Bfloat16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            SaveDtype::Float16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
        }
    }

    /// Whether rounding would turn a finite value into an infinity.
    fn overflows(self, value: f32) -> bool {
        value.is_finite()
            && match self {
                SaveDtype::Float32 => false,
                SaveDtype::Bfloat16 => bf16::from_f32(value).is_infinite(),
                SaveDtype::Float16 => f16::from_f32(value).is_infinite(),
            }
    }
}

/// Writes `specs` in order to `folder`, which is created if needed; `fetch` returns the values of
/// each tensor in the engine's layout. Values of more than `max_shard_bytes` are split into several
/// files, each with `notes` in its header; a tensor is never split.
///
/// # Errors
/// If a file cannot be written, `fetch` fails or returns a wrong number of values, or a value is
/// too large for `dtype`. The folder then keeps its earlier weights, except for shards of the same
/// name.
pub fn save<'a, E>(
    folder: &Path,
    specs: &[TensorSpec],
    dtype: SaveDtype,
    max_shard_bytes: u64,
    notes: &BTreeMap<String, String>,
    mut fetch: impl FnMut(&TensorSpec) -> Result<Cow<'a, [f32]>, E>,
) -> Result<(), WeightsError>
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    refuse_duplicates(specs)?;
    fs::create_dir_all(folder).map_err(on("create", folder))?;
    let shards = plan_shards(specs, dtype, max_shard_bytes);
    let mut files = BTreeSet::new();
    let mut places = Vec::new();
    for (index, &shard) in shards.iter().enumerate() {
        let name = shard_name(index, shards.len());
        replace_file(&folder.join(&name), |out| {
            write_shard(out, shard, dtype, notes.clone(), &mut fetch)
        })?;
        places.extend(shard.iter().map(|spec| (&spec.name, name.clone())));
        files.insert(name);
    }
    if shards.len() > 1 {
        write_index(&folder.join(INDEX), specs, dtype, places)?;
        files.insert(INDEX.to_owned());
    }
    remove_others(folder, &files)
}

/// Writes `specs` as one safetensors file, with `notes` in its header.
///
/// # Errors
/// As [`save`].
pub fn save_file<'a, E>(
    file: &Path,
    specs: &[TensorSpec],
    dtype: SaveDtype,
    notes: BTreeMap<String, String>,
    mut fetch: impl FnMut(&TensorSpec) -> Result<Cow<'a, [f32]>, E>,
) -> Result<(), WeightsError>
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    refuse_duplicates(specs)?;
    replace_file(file, |out| {
        write_shard(out, specs, dtype, notes, &mut fetch)
    })
}

fn refuse_duplicates(specs: &[TensorSpec]) -> Result<(), WeightsError> {
    let mut seen = BTreeSet::new();
    match specs.iter().find(|spec| !seen.insert(&spec.name)) {
        None => Ok(()),
        Some(twice) => Err(WeightsError::Duplicate {
            name: twice.name.clone(),
        }),
    }
}

/// Cuts `specs` into runs of at most `most` bytes; a larger tensor is a run of its own.
fn plan_shards(specs: &[TensorSpec], dtype: SaveDtype, most: u64) -> Vec<&[TensorSpec]> {
    let (mut shards, mut start, mut held) = (Vec::new(), 0, 0_u64);
    for (index, spec) in specs.iter().enumerate() {
        let bytes = (spec.numel() * dtype.bytes()) as u64;
        if index > start && held.saturating_add(bytes) > most {
            shards.push(&specs[start..index]);
            (start, held) = (index, 0);
        }
        held += bytes;
    }
    shards.push(&specs[start..]);
    shards
}

fn shard_name(index: usize, shards: usize) -> String {
    match shards {
        1 => SINGLE.to_owned(),
        _ => format!("model-{:05}-of-{shards:05}.safetensors", index + 1),
    }
}

fn write_shard<'a, E>(
    out: &mut dyn Write,
    specs: &[TensorSpec],
    dtype: SaveDtype,
    mut notes: BTreeMap<String, String>,
    fetch: &mut impl FnMut(&TensorSpec) -> Result<Cow<'a, [f32]>, E>,
) -> Result<(), WeightsError>
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    // transformers refuses a file without the framework of its layout.
    notes.insert("format".to_owned(), "pt".to_owned());
    let described = specs.iter().map(|spec| Description {
        name: spec.name.clone(),
        dtype: dtype.stored(),
        shape: spec.stored_shape(),
    });
    write_header(out, Some(&notes), described)?;
    for spec in specs {
        let values = fetch(spec).map_err(|source| WeightsError::Fetch {
            name: spec.name.clone(),
            source: source.into(),
        })?;
        let values = stored_order(spec, &values)?;
        refuse_overflow(spec, &values, dtype)?;
        write_values(out, &values, |value, bytes| dtype.encode(value, bytes))?;
    }
    Ok(())
}

/// The bytes of `values` in the file.
fn stored_order<'v>(spec: &TensorSpec, values: &'v [f32]) -> Result<Cow<'v, [f32]>, WeightsError> {
    if values.len() != spec.numel() {
        return Err(WeightsError::Length {
            name: spec.name.clone(),
            found: values.len(),
            expected: spec.numel(),
        });
    }
    Ok(match (spec.layout, spec.shape.as_slice()) {
        (StoredLayout::Conv1d, &[out, input]) => Cow::Owned(transpose(values, out, input)),
        _ => Cow::Borrowed(values),
    })
}

fn refuse_overflow(
    spec: &TensorSpec,
    values: &[f32],
    dtype: SaveDtype,
) -> Result<(), WeightsError> {
    match values.iter().find(|&&value| dtype.overflows(value)) {
        None => Ok(()),
        Some(&value) => Err(WeightsError::Overflow {
            name: spec.name.clone(),
            value,
            dtype,
        }),
    }
}

fn write_index(
    file: &Path,
    specs: &[TensorSpec],
    dtype: SaveDtype,
    places: Vec<(&String, String)>,
) -> Result<(), WeightsError> {
    let parameters: usize = specs.iter().map(TensorSpec::numel).sum();
    let weight_map: Map<String, Value> = places
        .into_iter()
        .map(|(name, shard)| (name.clone(), shard.into()))
        .collect();
    let index = json!({
        "metadata": { "total_parameters": parameters, "total_size": parameters * dtype.bytes() },
        "weight_map": weight_map,
    });
    Ok(replace_file(file, |out| writeln!(out, "{index:#}"))?)
}

/// Removes weights that an earlier save wrote under other names, which a reader would prefer or
/// count twice.
fn remove_others(folder: &Path, written: &BTreeSet<String>) -> Result<(), WeightsError> {
    for entry in fs::read_dir(folder).map_err(on("read", folder))? {
        let entry = entry.map_err(on("read", folder))?;
        let name = entry.file_name();
        let stale = name
            .to_str()
            .is_some_and(|name| is_weights_file(name) && !written.contains(name));
        if stale {
            fs::remove_file(entry.path()).map_err(on("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// Whether [`save`] may have written a file of this name.
fn is_weights_file(name: &str) -> bool {
    let shard =
        name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors");
    shard || name == SINGLE || name == INDEX
}
