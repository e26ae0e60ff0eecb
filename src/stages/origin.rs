//! What a stage was begun with, so that it is continued with nothing else: `config.toml`, the configuration, and
//! `inputs.json`, a checksum of every model and data file that the stage reads.
//!
//! A stage's folder keeps both, for the run's `config.toml` is replaced by whichever command comes next.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::config::diff::{Change, Effect, diff};
use crate::config::{Config, ModelStart, Stage};
use crate::data::tokenizer::TEMPLATES;
use crate::files::checksum::{self, Checksum};
use crate::files::regular;
use crate::model::hf_config::adapter::AdapterConfig;
use crate::terminal::{self, Phase};
use crate::train::run_folder::{RunFolder, StageFolder};

/// The checksums of what each key names, such as `ppo.from`, file by file.
type Inputs = BTreeMap<String, Vec<Checksum>>;

/// Refuses a configuration that would have led one of `stages` elsewhere than where it has begun to go. Other changes are noted on
/// the terminal.
///
/// # Errors
/// With every key that differs, or if a stage's former configuration cannot be read.
pub fn check_config(config: &Config, folder: &RunFolder, stages: &[Stage]) -> Result<()> {
    let (mut refused, mut harmless) = (BTreeSet::new(), BTreeSet::new());
    for &stage in stages {
        let files = folder.existing_stage(stage);
        if !files.has_begun() {
            continue;
        }
        let old = Config::load(&files.config(), &[]).with_context(|| {
            format!("the configuration that {stage} was begun with; start over with --fresh")
        })?;
        for change in diff(&old, config)?
            .iter()
            .filter(|change| change.concerns(stage))
        {
            match change.effect {
                Effect::ChangesResult => {
                    refused.insert(format!("{change} (stage {stage} has begun)"))
                }
                Effect::Harmless => harmless.insert(Change::to_string(change)),
            };
        }
    }
    if refused.is_empty() {
        harmless.iter().for_each(|change| {
            terminal::note(format_args!("changed since the run began: {change}"))
        });
        return Ok(());
    }
    bail!(
        "{} holds a run that was begun with other values:\n  {}\nput them back to continue it, choose another run.name, or start over with --fresh",
        folder.path().display(),
        refused.into_iter().collect::<Vec<_>>().join("\n  ")
    )
}

/// Notes what the stage begins with; or, where it has begun, refuses if a model or data file is not the one that it began with.
///
/// `local` is `config` with models of the hub replaced by their folders.
///
/// # Errors
/// With every input that differs, or if one cannot be read.
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
        let differ = |key: &&String| then.get(*key) != now.get(*key);
        let changed: Vec<&str> = keys
            .into_iter()
            .filter(differ)
            .map(String::as_str)
            .collect();
        if !changed.is_empty() {
            bail!(
                "stage {stage} was begun with other contents of {}; put them back, or start the stage over: collimate {stage} … --fresh",
                changed.join(", ")
            );
        }
    }
    files.write_inputs(&serde_json::to_vec_pretty(&now)?)?;
    Ok(files.write_config(&config.to_toml()?)?)
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
    for (key, path) in own.chain(programs).chain(tokenizer).chain(start) {
        let sums = sums(path).with_context(|| format!("{key} = \"{}\"", path.display()))?;
        inputs.entry(key).or_default().extend(sums);
    }
    Ok(inputs)
}

/// The sums of a file, or of those of a model folder; those of an adapter's base too.
fn sums(path: &Path) -> Result<Vec<Checksum>> {
    let mut files = files_of(path)?;
    if let Some(adapter) = AdapterConfig::find(path)? {
        files.extend(files_of(&adapter.base_folder(path)?)?);
    }
    let sum = |file: &PathBuf| {
        let sum = checksum::of_file(file);
        sum.with_context(|| format!("cannot read {}", file.display()))
    };
    files.iter().map(sum).collect()
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
