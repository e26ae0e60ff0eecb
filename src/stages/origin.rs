//! What a stage was begun with, so that it is continued with nothing else: `config.toml`, the configuration, and
//! `inputs.json`, a checksum of every model and data file that the stage reads.
//!
//! A stage's folder keeps both, for the run's `config.toml` is replaced by whichever command comes next.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::config::diff::{Change, Effect, diff};
use crate::config::{Config, Stage};
use crate::train::run_folder::{RunFolder, StageFolder};

/// The checksum of each input by its key, such as `ppo.from`, and its place in the key's list.
type Inputs = BTreeMap<String, String>;

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
        let old = Config::load(&files.config(), &[])
            .with_context(|| format!("the configuration that {stage} was begun with"))?;
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
        harmless
            .iter()
            .for_each(|change| eprintln!("changed since the run began: {change}"));
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
    let now = inputs(local, stage)?;
    if files.has_begun() {
        let then = read_inputs(&files.inputs())?;
        let differ = |key: &&String| then.get(*key) != now.get(*key);
        let changed: Vec<&str> = now
            .keys()
            .chain(then.keys())
            .filter(differ)
            .map(String::as_str)
            .collect();
        if !changed.is_empty() {
            let changed: BTreeSet<&str> = changed.into_iter().collect();
            bail!(
                "stage {stage} was begun with other contents of {}; put them back, or start the stage over: collimate {stage} … --fresh",
                changed.into_iter().collect::<Vec<_>>().join(", ")
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
    let bytes = fs::read(file).with_context(mend)?;
    serde_json::from_slice(&bytes).with_context(mend)
}

fn inputs(config: &Config, stage: Stage) -> Result<Inputs> {
    let mut inputs = Inputs::new();
    let mut note = |key: String, path: &Path| -> Result<()> {
        let sum = checksum(path).with_context(|| format!("{key} = \"{}\"", path.display()))?;
        let place = (1..).map(|place| format!("{key} ({place})"));
        let free = std::iter::once(key.clone())
            .chain(place)
            .find(|key| !inputs.contains_key(key));
        inputs.insert(free.unwrap_or(key), sum);
        Ok(())
    };
    for (key, path) in config
        .data_files(stage)
        .into_iter()
        .chain(config.models_read(stage))
    {
        note(format!("{stage}.{key}"), path)?;
    }
    if let Some(path) = &config.tokenizer.from {
        note("tokenizer.from".to_owned(), path)?;
    }
    if stage == Stage::Pretrain
        && let Some(folder) = config.model.start.as_ref().and_then(|start| start.folder())
    {
        note("model.from".to_owned(), folder)?;
    }
    Ok(inputs)
}

/// CRC-32 over the bytes of a file, or over those of a model folder that say what the model computes.
fn checksum(path: &Path) -> io::Result<String> {
    let mut crc = crc32fast::Hasher::new();
    for file in files_of(path)? {
        let mut reader = BufReader::with_capacity(1 << 20, File::open(file)?);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match reader.read(&mut buffer)? {
                0 => break,
                read => crc.update(&buffer[..read]),
            }
        }
    }
    Ok(format!("{:08x}", crc.finalize()))
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
        if file.is_file() && file.extension().is_some_and(|kind| read.contains(&kind)) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}
