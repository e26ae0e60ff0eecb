//! The folder of a run: the files of each stage, and the lock of the process that writes them.
//!
//! ```text
//! runs/NAME/config.toml            the resolved configuration of the last command
//! runs/NAME/STAGE/config.toml      the configuration of the stage
//! runs/NAME/STAGE/inputs.json      checksums of the stage's inputs
//! runs/NAME/STAGE/metrics.jsonl    one object a step
//! runs/NAME/STAGE/samples.jsonl    completions of the evaluations
//! runs/NAME/STAGE/checkpoints/     what a continued run starts from
//! runs/NAME/STAGE/final/           the model, a Hugging Face folder
//! runs/NAME/STAGE/done.json        written last: the stage is finished
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::checkpoint;
use super::durable::{self, on};
use crate::config::Stage;
use crate::files::regular;
use crate::terminal;

const LOCK: &str = ".lock";
const CONFIG: &str = "config.toml";

/// Part of the name of a former run or stage that was set aside.
const OLD: &str = "old";

/// Ending of the names of files with weights.
const WEIGHTS: &str = ".safetensors";

/// Whether an existing run or stage is continued or set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// The existing files are continued.
    Continue,
    /// The existing folder is renamed, and the run starts over.
    SetAside,
}

/// Why a run's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunFolderError {
    /// Another process uses the folder.
    #[error(
        "another process is using {}; wait for it to end, or choose another run.name",
        .0.display()
    )]
    InUse(PathBuf),
    /// An I/O error, with the action and the path.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The marker of a finished stage could not be read.
    #[error("{}: {source}; remove the file to run the stage again", file.display())]
    DoneMarker {
        /// The marker.
        file: PathBuf,
        /// The error of the parser.
        source: serde_json::Error,
    },
}

/// The folder of a run, locked against other processes while the value lives.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    /// The operating system releases the lock when the file is closed, also when the process is
    /// killed.
    _lock: File,
}

/// The folder of one stage of a run.
#[derive(Clone, Debug)]
pub struct StageFolder {
    root: PathBuf,
}

/// The result of a finished stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageOutcome {
    /// Number of configured steps; the stage is continued if it is raised.
    pub steps: u64,
    /// Numbers for the closing table, by name.
    pub summary: Map<String, Value>,
}

/// The marker of a finished stage, `done.json`.
#[derive(Serialize, Deserialize)]
struct DoneMarker {
    #[serde(flatten)]
    done: StageOutcome,
    /// The files of the final model with their sizes in bytes.
    files: BTreeMap<String, u64>,
}

impl RunFolder {
    /// Locks the folder `root`, which is created if necessary.
    ///
    /// # Errors
    /// [`RunFolderError::InUse`] if another process has locked it.
    pub fn open(root: &Path) -> Result<Self, RunFolderError> {
        fs::create_dir_all(root).map_err(on("create", root))?;
        let path = root.join(LOCK);
        let lock = File::create(&path).map_err(on("create", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                root: root.into(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(RunFolderError::InUse(root.into())),
            Err(TryLockError::Error(error)) => Err(on("lock", &path)(error).into()),
        }
    }

    /// An empty folder in place of this one, which is renamed to `NAME.old-1` (or the next free
    /// number) unless it is empty itself.
    ///
    /// # Errors
    /// If the folder cannot be renamed, or [`Self::open`]'s errors.
    pub fn set_aside(self) -> Result<Self, RunFolderError> {
        if is_empty(&self.root)? {
            return Ok(self);
        }
        // The lock moves away with the folder, so no other process can be writing what is set
        // aside.
        note_set_aside(&self.root, &durable::set_aside(&self.root, OLD)?);
        Self::open(&self.root)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Path of the resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join(CONFIG)
    }

    /// The folder of `stage`, which may not exist yet.
    pub fn existing_stage(&self, stage: Stage) -> StageFolder {
        StageFolder {
            root: self.root.join(stage.name()),
        }
    }

    /// Replaces the resolved configuration.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_config(&self, toml: &str) -> Result<(), RunFolderError> {
        Ok(durable::write_atomic(&self.config(), toml.as_bytes())?)
    }

    /// The folder of `stage`, created if necessary. With [`Existing::SetAside`] a former folder of
    /// the stage is first renamed to `STAGE.old-1` (or the next free number).
    ///
    /// # Errors
    /// If it cannot be created or moved.
    pub fn stage(&self, stage: Stage, existing: Existing) -> Result<StageFolder, RunFolderError> {
        let folder = self.existing_stage(stage);
        if existing == Existing::SetAside && folder.root.exists() {
            note_set_aside(&folder.root, &durable::set_aside(&folder.root, OLD)?);
        }
        fs::create_dir_all(&folder.root).map_err(on("create", &folder.root))?;
        durable::remove_leftovers(&folder.root)?;
        Ok(folder)
    }
}

impl StageFolder {
    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Whether a checkpoint, whole or damaged, or the marker of the end of the stage exists: only
    /// this configuration and these inputs may continue it. A log alone does not count: the steps
    /// in it were not saved.
    pub fn has_begun(&self) -> bool {
        self.has_checkpoint() || self.marker().exists()
    }

    /// Whether there is a checkpoint, whole or damaged.
    pub fn has_checkpoint(&self) -> bool {
        checkpoint::are_in(&self.checkpoints())
    }

    /// Whether an earlier process has completed steps of the stage.
    pub fn has_log(&self) -> bool {
        fs::metadata(self.metrics()).is_ok_and(|log| log.len() > 0)
    }

    /// Path of the stage's configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join(CONFIG)
    }

    /// Path of the checksums of the stage's inputs.
    pub fn inputs(&self) -> PathBuf {
        self.root.join("inputs.json")
    }

    /// Replaces the stage's configuration.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_config(&self, toml: &str) -> Result<(), RunFolderError> {
        Ok(durable::write_atomic(&self.config(), toml.as_bytes())?)
    }

    /// Replaces `inputs.json`, which holds the checksums.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_inputs(&self, json: &[u8]) -> Result<(), RunFolderError> {
        Ok(durable::write_atomic(&self.inputs(), json)?)
    }

    /// The file that names the arithmetic of the stage's products.
    pub fn arithmetic(&self) -> PathBuf {
        self.root.join("arithmetic")
    }

    /// Replaces the name of the arithmetic.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_arithmetic(&self, name: &str) -> Result<(), RunFolderError> {
        Ok(durable::write_atomic(
            &self.arithmetic(),
            format!("{name}\n").as_bytes(),
        )?)
    }

    /// Path of `metrics.jsonl`, which holds one JSON object a step.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// Completions of the evaluations.
    pub fn samples(&self) -> PathBuf {
        self.root.join("samples.jsonl")
    }

    /// The folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The model, a Hugging Face folder.
    pub fn final_model(&self) -> PathBuf {
        self.root.join("final")
    }

    /// Writes the final model: `fill` gets an empty folder, which takes its place only when it is
    /// complete.
    ///
    /// # Errors
    /// The errors of `fill`, or if the folder cannot be written.
    pub fn write_final<T, E: From<io::Error>>(
        &self,
        fill: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<T, E> {
        durable::replace_folder(&self.final_model(), fill)
    }

    /// The result of the stage, if it is finished.
    ///
    /// # Errors
    /// If the marker is there and cannot be read.
    pub fn done(&self) -> Result<Option<StageOutcome>, RunFolderError> {
        Ok(self.marked()?.map(|marked| marked.done))
    }

    fn marked(&self) -> Result<Option<DoneMarker>, RunFolderError> {
        let file = self.marker();
        match regular::read(&file) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(marked) => Ok(Some(marked)),
                Err(source) => Err(RunFolderError::DoneMarker { file, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(on("read", &file)(error).into()),
        }
    }

    /// Marks the stage as finished, and records the files of its model. Must be called when the
    /// final model is complete.
    ///
    /// # Errors
    /// If the marker cannot be written, or the model's folder cannot be listed.
    pub fn mark_done(&self, done: &StageOutcome) -> Result<(), RunFolderError> {
        let marker = DoneMarker {
            done: done.clone(),
            files: sizes(&self.final_model())?,
        };
        let bytes = serde_json::to_vec_pretty(&marker).map_err(io::Error::from)?;
        Ok(durable::write_atomic(&self.marker(), &bytes)?)
    }

    /// A file of the final model that is missing since the stage was marked finished, or a weights
    /// file of another size. Other files may have been edited since.
    ///
    /// # Errors
    /// If the marker is there and cannot be read.
    pub fn lost_of_final(&self) -> Result<Option<PathBuf>, RunFolderError> {
        let folder = self.final_model();
        let Some(marked) = self.marked()? else {
            return Ok(None);
        };
        if !folder.is_dir() {
            return Ok(Some(folder));
        }
        let is_there = |(name, bytes): &(&String, &u64)| {
            let found = fs::metadata(folder.join(name))
                .ok()
                .filter(|file| file.is_file());
            found.is_some_and(|file| file.len() == **bytes || !name.ends_with(WEIGHTS))
        };
        let mut lost = marked.files.iter().filter(|file| !is_there(file));
        Ok(lost.next().map(|(name, _)| folder.join(name)))
    }

    /// Removes the mark of a finished stage, so that it can be continued.
    ///
    /// # Errors
    /// If the marker cannot be removed.
    pub fn unmark_done(&self) -> Result<(), RunFolderError> {
        Ok(durable::remove(&self.marker())?)
    }

    fn marker(&self) -> PathBuf {
        self.root.join("done.json")
    }
}

fn note_set_aside(folder: &Path, aside: &Path) {
    terminal::note(format_args!(
        "starts over; {} is kept as {}",
        folder.display(),
        aside.display()
    ));
}

/// Names and sizes in bytes of the files in `folder`; none if there is no such folder.
fn sizes(folder: &Path) -> io::Result<BTreeMap<String, u64>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries.map_err(on("read", folder))?,
    };
    let mut sizes = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(on("read", folder))?;
        let file = entry.metadata().map_err(on("read", &entry.path()))?;
        if let (true, Ok(name)) = (file.is_file(), entry.file_name().into_string()) {
            sizes.insert(name, file.len());
        }
    }
    Ok(sizes)
}

/// Whether the folder of a run holds only its lock.
fn is_empty(root: &Path) -> io::Result<bool> {
    let mut names = fs::read_dir(root)
        .map_err(on("read", root))?
        .flatten()
        .map(|entry| entry.file_name());
    Ok(names.all(|name| name == LOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("trial");
        let held = RunFolder::open(&root).unwrap();
        let error = RunFolder::open(&root).unwrap_err();
        assert!(matches!(error, RunFolderError::InUse(_)), "{error}");
        drop(held);
        RunFolder::open(&root).unwrap();
    }

    #[test]
    fn a_fresh_run_sets_the_old_one_aside() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("trial");
        for text in ["one", "two", "three"] {
            let folder = RunFolder::open(&root).unwrap().set_aside().unwrap();
            assert!(!folder.config().exists());
            folder.write_config(text).unwrap();
        }
        let read =
            |name: &str| fs::read_to_string(parent.path().join(name).join("config.toml")).unwrap();
        assert_eq!(
            [read("trial.old-1"), read("trial.old-2"), read("trial")],
            ["one", "two", "three"]
        );
    }

    #[test]
    fn a_fresh_stage_leaves_the_others() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(&parent.path().join("trial")).unwrap();
        for stage in [Stage::Sft, Stage::Ppo] {
            let stage = folder.stage(stage, Existing::Continue).unwrap();
            fs::write(stage.metrics(), "{}").unwrap();
        }
        let fresh = folder.stage(Stage::Ppo, Existing::SetAside).unwrap();
        assert!(!fresh.metrics().exists());
        assert!(folder.path().join("ppo.old-1/metrics.jsonl").exists());
        assert!(folder.path().join("sft/metrics.jsonl").exists());
    }

    #[test]
    fn a_stage_has_begun_with_its_first_checkpoint() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(parent.path()).unwrap();
        let stage = folder.stage(Stage::Sft, Existing::Continue).unwrap();
        fs::write(stage.metrics(), "{\"step\":1}\n").unwrap();
        fs::create_dir_all(stage.checkpoints().join(".tmp-step-00000001")).unwrap();
        assert!(!stage.has_begun() && stage.has_log());
        fs::create_dir(stage.checkpoints().join("step-00000001")).unwrap();
        fs::remove_file(stage.metrics()).unwrap();
        assert!(stage.has_begun() && !stage.has_log());
    }

    #[test]
    fn a_file_that_the_final_model_lost_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(parent.path()).unwrap();
        let stage = folder.stage(Stage::Sft, Existing::Continue).unwrap();
        let model = stage.final_model();
        fs::create_dir(&model).unwrap();
        let write = |name: &str, text: &str| fs::write(model.join(name), text).unwrap();
        write("config.json", "{}");
        write("model.safetensors", "weights");
        let done = StageOutcome {
            steps: 1,
            summary: Map::new(),
        };
        stage.mark_done(&done).unwrap();
        let lost = || stage.lost_of_final().unwrap();
        write("config.json", "{\"edited\": true}");
        assert_eq!(lost(), None);
        write("model.safetensors", "");
        assert_eq!(lost(), Some(model.join("model.safetensors")));
        fs::remove_dir_all(&model).unwrap();
        assert_eq!(lost(), Some(model.clone()));
    }

    #[test]
    fn a_stage_is_done_when_marked() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(parent.path()).unwrap();
        let stage = folder.stage(Stage::Sft, Existing::Continue).unwrap();
        assert_eq!(stage.done().unwrap(), None);
        let summary = Map::from_iter([("eval/loss".to_string(), Value::from(4.09))]);
        let done = StageOutcome {
            steps: 120,
            summary,
        };
        stage.mark_done(&done).unwrap();
        assert_eq!(stage.done().unwrap(), Some(done));
        fs::write(stage.marker(), "{").unwrap();
        assert!(stage.done().unwrap_err().to_string().contains("done.json"));
        stage.unmark_done().unwrap();
        assert_eq!(stage.done().unwrap(), None);
    }
}
