//! Checkpoints: folders that are either complete or absent.
//!
//! `checkpoints/step-00000120/` holds the files that a stage continues from, and `manifest.json`
//! with the size and CRC-32 of each. It is written under a temporary name, every file synced, and
//! renamed when complete, so that a process killed at any instant leaves the newest complete
//! checkpoint intact. Reading takes the newest one whose manifest and checksums are right, and sets
//! aside the newer ones.
//!
//! The stage gives the files their meaning; tensors, devices and models are unknown here. Small
//! state (counters, cursors, coefficients) is one JSON value, with a checksum like the other files.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::durable::{self, on};
use crate::files::checksum::{self, Checksum, Summed};
use crate::files::regular;

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";

/// Version of the folder's layout; a checkpoint of another version is passed over.
const FORMAT: u32 = 1;

/// Suffix of the folder of a checkpoint that was passed over.
const UNUSABLE: &str = ".unusable";

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// An I/O error, with the action and the path.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A file was added under an invalid name.
    #[error("`{0}` cannot be the name of a file in a checkpoint")]
    Name(String),
    /// The state does not parse.
    #[error("{}: {source}; the checkpoint was written by another version, start over with \
             --fresh", file.display())]
    State {
        /// The state's file.
        file: PathBuf,
        /// The error of the parser.
        source: serde_json::Error,
    },
}

/// The checkpoints of one stage.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// A checkpoint in its folder. The one in [`Latest`] is complete and has the right checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Steps completed when it was written.
    pub step: u64,
    folder: PathBuf,
}

/// The newest usable checkpoint, and the newer ones that are damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    /// `None` if no checkpoint is usable.
    pub checkpoint: Option<Checkpoint>,
    /// One line for each damaged checkpoint that was passed over, newest first: its present path
    /// and its fault.
    pub passed_over: Vec<String>,
}

/// A checkpoint being written. If it is dropped before [`Writer::commit`], no file remains.
#[derive(Debug)]
pub struct Writer {
    step: u64,
    beside: PathBuf,
    target: PathBuf,
    files: BTreeMap<String, Checksum>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    step: u64,
    files: BTreeMap<String, Checksum>,
}

impl Checkpoints {
    /// Opens the folder, creates it if necessary, and removes the unfinished files of a killed
    /// process.
    ///
    /// # Errors
    /// If the folder cannot be created or cleaned.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        fs::create_dir_all(folder).map_err(on("create", folder))?;
        durable::remove_leftovers(folder)?;
        Ok(Self {
            folder: folder.into(),
        })
    }

    /// Begins the checkpoint of `step`.
    ///
    /// # Errors
    /// If its temporary folder cannot be created.
    pub fn writer(&self, step: u64) -> Result<Writer, CheckpointError> {
        let name = folder_name(step);
        let beside = self.folder.join(format!("{}{name}", durable::TEMPORARY));
        durable::remove(&beside)?;
        fs::create_dir(&beside).map_err(on("create", &beside))?;
        Ok(Writer {
            step,
            beside,
            target: self.folder.join(name),
            files: BTreeMap::new(),
        })
    }

    /// The newest checkpoint that is complete and whose checksums are right. Newer ones are set
    /// aside: being the newest by name, they would be kept instead of those that the run writes
    /// next.
    ///
    /// # Errors
    /// If the folder cannot be listed or a checkpoint cannot be renamed. A damaged checkpoint is
    /// not an error: it is passed over and reported.
    pub fn resume(&self) -> Result<Latest, CheckpointError> {
        let mut passed_over = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            let folder = self.folder.join(folder_name(step));
            match verify(&folder, step) {
                Ok(()) => {
                    return Ok(Latest {
                        checkpoint: Some(Checkpoint { step, folder }),
                        passed_over,
                    });
                }
                Err(damage) => {
                    let aside = set_aside(&folder)?;
                    passed_over.push(format!("{}: {damage}", aside.display()));
                }
            }
        }
        Ok(Latest {
            checkpoint: None,
            passed_over,
        })
    }

    /// Removes all checkpoints but the newest `keep_last` and those at multiples of `keep_every`
    /// (0: no such).
    ///
    /// The newest always stays.
    ///
    /// # Errors
    /// If a folder cannot be removed.
    pub fn prune(&self, keep_last: usize, keep_every: u64) -> Result<(), CheckpointError> {
        let steps = self.steps()?;
        let older = steps.len().saturating_sub(keep_last.max(1));
        for step in &steps[..older] {
            if keep_every > 0 && step.is_multiple_of(keep_every) {
                continue;
            }
            durable::remove(&self.folder.join(folder_name(*step)))?;
        }
        Ok(())
    }

    /// All checkpoints, oldest first; they are verified only when they are read.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn all(&self) -> Result<Vec<Checkpoint>, CheckpointError> {
        let at = |step| Checkpoint {
            step,
            folder: self.folder.join(folder_name(step)),
        };
        Ok(self.steps()?.into_iter().map(at).collect())
    }

    /// Steps of all checkpoint folders, in ascending order; they are verified only when they are
    /// read.
    fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(on("read", &self.folder))? {
            let name = entry.map_err(on("read", &self.folder))?.file_name();
            steps.extend(name.to_str().and_then(step_of));
        }
        steps.sort_unstable();
        Ok(steps)
    }
}

impl Checkpoint {
    /// Path of a file of the checkpoint.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The state that was given to [`Writer::commit`].
    ///
    /// # Errors
    /// If the file cannot be read, or its value is not a `T`.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T, CheckpointError> {
        self.json(STATE)
    }

    /// The value of a file that [`Writer::add_json`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, or its value is not a `T`.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, CheckpointError> {
        let file = self.path(name);
        let bytes = regular::read(&file).map_err(on("read", &file))?;
        serde_json::from_slice(&bytes).map_err(|source| CheckpointError::State { file, source })
    }
}

impl Writer {
    /// Adds a file: `write` gets a buffered writer, whose bytes go into the checksum.
    ///
    /// # Errors
    /// If the name contains a path or is taken, or the file cannot be written.
    pub fn add_file(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), CheckpointError> {
        if !is_plain(name) || name == MANIFEST || self.files.contains_key(name) {
            return Err(CheckpointError::Name(name.into()));
        }
        let path = self.beside.join(name);
        let entry = durable::write_synced(&path, |file| -> io::Result<Checksum> {
            let mut summed = Summed::new(file);
            write(&mut summed)?;
            Ok(summed.finish())
        })?;
        self.files.insert(name.into(), entry);
        Ok(())
    }

    /// Adds a file with `value` as JSON. Floats are read back as the same bits; floats that may be
    /// NaN or infinite need [`super::float`], since JSON has no such numbers and would hold null.
    ///
    /// # Errors
    /// The errors of [`Writer::add_file`].
    pub fn add_json<T: Serialize>(&mut self, name: &str, value: &T) -> Result<(), CheckpointError> {
        let bytes = serde_json::to_vec(value).map_err(io::Error::from)?;
        self.add_file(name, |file| file.write_all(&bytes))
    }

    /// Completes the checkpoint with the stage's `state`, and makes it visible. It replaces a
    /// checkpoint of the same step.
    ///
    /// # Errors
    /// If a file cannot be written; then there is no checkpoint.
    pub fn commit<T: Serialize>(mut self, state: &T) -> Result<Checkpoint, CheckpointError> {
        self.add_json(STATE, state)?;
        let files = std::mem::take(&mut self.files);
        let manifest = Manifest {
            format: FORMAT,
            step: self.step,
            files,
        };
        let bytes = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from)?;
        durable::write_synced(&self.beside.join(MANIFEST), |file| file.write_all(&bytes))?;
        durable::sync_folder(&self.beside)?;
        durable::rename_folder(&self.beside, &self.target)?;
        Ok(Checkpoint {
            step: self.step,
            folder: self.target.clone(),
        })
    }
}

impl Drop for Writer {
    /// Removes the temporary folder, which a commit has renamed.
    fn drop(&mut self) {
        // If this fails, the folder is removed when the checkpoints are next opened.
        let _ = durable::remove(&self.beside);
    }
}

/// Whether `folder` holds a checkpoint, whole or damaged; false if it cannot be listed.
pub fn are_in(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut steps = entries.map(|entry| entry.file_name().to_str().and_then(step_of));
    steps.any(|step| step.is_some())
}

/// Name of a step's folder, `step-00000120`.
fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Renames a checkpoint that cannot be used, in place of one of this step that was set aside
/// before.
fn set_aside(folder: &Path) -> io::Result<PathBuf> {
    let mut aside = folder.as_os_str().to_owned();
    aside.push(UNUSABLE);
    let aside = PathBuf::from(aside);
    durable::remove(&aside)?;
    fs::rename(folder, &aside).map_err(on("set aside", folder))?;
    Ok(aside)
}

/// The step in the name of a checkpoint's folder; `None` for other names.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// Whether a name is that of a file in the checkpoint's own folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

/// Checks a checkpoint against its manifest; the error says what is damaged.
fn verify(folder: &Path, step: u64) -> Result<(), String> {
    let manifest =
        regular::read(&folder.join(MANIFEST)).map_err(|error| format!("{MANIFEST}: {error}"))?;
    let manifest: Manifest =
        serde_json::from_slice(&manifest).map_err(|error| format!("{MANIFEST}: {error}"))?;
    if manifest.format != FORMAT {
        return Err(format!(
            "{MANIFEST}: format {}, this version reads {FORMAT}",
            manifest.format
        ));
    }
    if manifest.step != step || !manifest.files.contains_key(STATE) {
        return Err(format!("{MANIFEST}: does not describe step {step}"));
    }
    for (name, expected) in &manifest.files {
        if !is_plain(name) {
            return Err(format!(
                "{MANIFEST}: `{name}` is not a file of the checkpoint"
            ));
        }
        let file = folder.join(name);
        let bytes = size(&file).map_err(|error| format!("{name}: {error}"))?;
        if bytes != expected.bytes {
            return Err(format!(
                "{name}: {bytes} bytes, expected {}",
                expected.bytes
            ));
        }
        let found = checksum::of_file(&file).map_err(|error| format!("{name}: {error}"))?;
        if found != *expected {
            return Err(format!(
                "{name}: checksum {:08x}, expected {:08x}",
                found.crc32, expected.crc32
            ));
        }
    }
    Ok(())
}

/// Size in bytes of a regular file; a link is refused, since it may lead out of the folder.
fn size(file: &Path) -> io::Result<u64> {
    let found = fs::symlink_metadata(file)?;
    match found.is_file() {
        true => Ok(found.len()),
        false => Err(regular::refusal(found.file_type())),
    }
}

#[cfg(test)]
mod tests;
