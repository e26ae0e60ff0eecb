//! The inputs that a stage was started with, so that it is not continued with others:
//! `inputs.json`, a checksum of every model and data file that the stage reads.
//!
//! It lies in the stage's folder beside a `config.toml` of the stage, since the next command
//! replaces that of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::config::{Config, ModelStart, Stage};
use crate::data::tokenizer::TEMPLATES;
use crate::files::checksum::{self, Checksum};
use crate::files::regular;
use crate::model::hf_config::adapter::AdapterConfig;
use crate::terminal::Phase;
use crate::train::run_folder::StageFolder;

/// The files that each key names, such as `ppo.from`.
type Inputs = BTreeMap<String, Vec<InputFile>>;

/// A file that a stage reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct InputFile {
    /// File name, within the folder if the key names a folder.
    name: String,
    #[serde(flatten)]
    checksum: Checksum,
}

/// Writes the checksums of the inputs of the stage. If it has begun, refuses a model or data file
/// that has changed since.
///
/// `local` is `config` with models of the hub replaced by their folders.
///
/// # Errors
/// Every input that differs, or one that cannot be read.
pub fn check_inputs(
    config: &Config,
    local: &Config,
    stage: Stage,
    files: &StageFolder,
) -> Result<()> {
    let phase = Phase::begin("checksums of models and data");
    let now = inputs(local, stage)?;
    drop(phase);
    if files.has_begun() {
        let then = read_inputs(&files.inputs())?;
        let keys: BTreeSet<&String> = now.keys().chain(then.keys()).collect();
        let changed = keys.into_iter().filter_map(|key| {
            let [then, now] =
                [&then, &now].map(|inputs| inputs.get(key).map_or(&[][..], Vec::as_slice));
            let files = changed_files(then, now);
            (!files.is_empty()).then(|| format!("{key} ({})", files.join(", ")))
        });
        let changed: Vec<String> = changed.collect();
        ensure!(
            changed.is_empty(),
            "stage {stage} was started with other contents of {}; put the files back, or start the \
             stage over: collimate {stage} … --fresh",
            changed.join(", ")
        );
    }
    files.write_inputs(&serde_json::to_vec_pretty(&now)?)?;
    Ok(files.write_config(&config.to_toml()?)?)
}

/// The names of the files that one list lacks, or has with other contents.
fn changed_files(then: &[InputFile], now: &[InputFile]) -> Vec<String> {
    let sums = |files: &[InputFile]| files.iter().map(|file| file.checksum).collect::<Vec<_>>();
    if sums(then) == sums(now) {
        return Vec::new();
    }
    let only = |one: &[InputFile], other: &[InputFile]| {
        let own = one.iter().filter(|file| !other.contains(file));
        own.map(|file| file.name.clone()).collect::<Vec<_>>()
    };
    let names: BTreeSet<String> = [only(now, then), only(then, now)]
        .concat()
        .into_iter()
        .collect();
    match names.is_empty() {
        true => vec!["the order of its files".to_owned()],
        false => names.into_iter().collect(),
    }
}

fn read_inputs(file: &Path) -> Result<Inputs> {
    let mend = || {
        format!(
            "{}: cannot be read; start the stage over with --fresh",
            file.display()
        )
    };
    let bytes = regular::read(file).with_context(mend)?;
    serde_json::from_slice(&bytes).with_context(mend)
}

fn inputs(config: &Config, stage: Stage) -> Result<Inputs> {
    let mut inputs = Inputs::new();
    for (key, path) in input_paths(config, stage) {
        let sums = sums(path).with_context(|| format!("{key} = \"{}\"", path.display()))?;
        inputs.entry(key).or_default().extend(sums);
    }
    Ok(inputs)
}

/// The files and model folders that `stage` reads, with their keys.
pub fn input_paths(config: &Config, stage: Stage) -> Vec<(String, &Path)> {
    let own = config
        .data_files(stage)
        .into_iter()
        .chain(config.models_read(stage));
    let own = own.map(|(key, path)| (format!("{stage}.{key}"), path));
    let tokenizer = config.tokenizer.from.as_deref();
    let tokenizer = tokenizer.map(|path| ("tokenizer.from".to_owned(), path));
    let programs = config.ppo.iter().filter(|_| stage == Stage::Ppo);
    let programs = programs.flat_map(|ppo| ppo.reward_programs());
    let programs = programs.map(|path| ("ppo.rewards".to_owned(), path));
    let start = config.model.start.as_ref().and_then(ModelStart::folder);
    let start = start.filter(|_| stage == Stage::Pretrain);
    let start = start.map(|path| ("model.from".to_owned(), path));
    let template = config.tokenizer.chat_template.as_deref();
    let template = template.filter(|_| stage == Stage::Pretrain);
    let template = template.map(|path| ("tokenizer.chat_template".to_owned(), path));
    let shared = tokenizer.into_iter().chain(template).chain(start);
    own.chain(programs).chain(shared).collect()
}

/// The checksums of a file, or of a model folder's files; those of an adapter's base too.
fn sums(path: &Path) -> Result<Vec<InputFile>> {
    let mut files = sums_in(path)?;
    if let Some(adapter) = AdapterConfig::find(path)? {
        files.extend(sums_in(&adapter.base_folder(path)?)?);
    }
    Ok(files)
}

fn sums_in(path: &Path) -> Result<Vec<InputFile>> {
    let file = |file: PathBuf| {
        let within = file.strip_prefix(path).unwrap_or(&file);
        let name = match within.as_os_str().is_empty() {
            true => Path::new(file.file_name().unwrap_or_default()),
            false => within,
        };
        let checksum = checksum::of_file(&file);
        anyhow::Ok(InputFile {
            name: name.display().to_string(),
            checksum: checksum.with_context(|| format!("cannot read {}", file.display()))?,
        })
    };
    files_of(path)?.into_iter().map(file).collect()
}

/// The file itself, or a folder's JSON, templates and weights, by name.
fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let read = ["json", "jinja", "safetensors"].map(std::ffi::OsStr::new);
        if file.is_dir() && file.ends_with(TEMPLATES) {
            files.extend(files_of(&file)?);
        } else if file.is_file() && file.extension().is_some_and(|kind| read.contains(&kind)) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}
