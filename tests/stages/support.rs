//! Shared by the tests of the stages: tiny models of a small language, and runs of the binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::{Map, Value};
use tempfile::TempDir;

#[path = "language.rs"]
mod language;

pub use language::*;

/// A separate folder for one test, with the data and a configuration. Commands run there.
pub struct Workspace(TempDir);

/// Exit code and output of one run of the binary.
pub struct Ended {
    pub code: Option<i32>,
    pub stderr: String,
}

impl Ended {
    /// Exit code and standard error of a finished process.
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts that the command was refused, with these parts in its message.
    #[allow(dead_code, reason = "some binaries have no use for it")]
    #[track_caller]
    pub fn assert_refused(&self, says: &[&str]) {
        let text = &self.stderr;
        assert_eq!(self.code, Some(1), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        for part in says {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }
}

/// One line of `metrics.jsonl`.
pub type Line = Map<String, Value>;

/// A file of a model folder: its path within the workspace, and its bytes.
type ModelFile = (String, Vec<u8>);

/// The models of a run that pretrained, fine-tuned and trained a reward model, from which tests of
/// later stages start.
static TRAINED: LazyLock<Vec<ModelFile>> = LazyLock::new(|| {
    let workspace = Workspace::new();
    let mut files = Vec::new();
    for stage in ["pretrain", "sft", "reward"] {
        workspace.succeed(&format!("{stage} config.toml"));
        for entry in fs::read_dir(workspace.model("trial", stage)).expect("a model") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy();
            files.push((format!("models/{stage}/{name}"), read(&path)));
        }
    }
    files
});

impl Workspace {
    /// A workspace with the data, and [`CONFIG`] as `config.toml`.
    pub fn new() -> Self {
        let workspace = Self(tempfile::tempdir().expect("a temporary folder"));
        workspace.write("config.toml", CONFIG);
        for (name, contents) in files() {
            workspace.write(name, &contents);
        }
        workspace
    }

    /// A workspace that also holds trained models in `models/STAGE`, from which later stages start.
    pub fn trained() -> Self {
        let workspace = Self::new();
        for (name, bytes) in TRAINED.iter() {
            let path = workspace.path(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a writable folder");
            fs::write(path, bytes).expect("a writable folder");
        }
        let config = CONFIG
            .replace("[sft]", "[sft]\nfrom = \"models/pretrain\"")
            .replace("[dpo]", "[dpo]\nfrom = \"models/sft\"")
            .replace("[reward]", "[reward]\nfrom = \"models/sft\"")
            .replace(
                "[ppo]",
                "[ppo]\nfrom = \"models/sft\"\nreward_model = \"models/reward\"",
            );
        workspace.write("config.toml", &config);
        workspace
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, contents: &str) {
        fs::write(self.path(name), contents).expect("a writable folder");
    }

    /// A stage's folder.
    pub fn stage(&self, run: &str, stage: &str) -> PathBuf {
        self.path("runs").join(run).join(stage)
    }

    /// A stage's final model.
    pub fn model(&self, run: &str, stage: &str) -> PathBuf {
        self.stage(run, stage).join("final")
    }

    /// The bytes of a stage's final weights or adapters.
    pub fn weights(&self, run: &str, stage: &str) -> Vec<u8> {
        let files = ["model.safetensors", "adapter_model.safetensors"];
        let mut paths = files
            .map(|file| self.model(run, stage).join(file))
            .into_iter();
        read(&paths.find(|path| path.exists()).expect("a model"))
    }

    /// Removes a finished stage's model and the mark that it is finished.
    #[allow(dead_code, reason = "some binaries have no use for it")]
    pub fn lose_final(&self, run: &str, stage: &str) {
        let folder = self.stage(run, stage);
        fs::remove_file(folder.join("done.json")).expect("a mark");
        fs::remove_dir_all(folder.join("final")).expect("a model");
    }

    /// The lines of a stage's `metrics.jsonl`.
    pub fn metrics(&self, run: &str, stage: &str) -> Vec<Line> {
        lines(&self.stage(run, stage).join("metrics.jsonl"))
    }

    /// The `collimate` command with these space-separated arguments.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_collimate"));
        command
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs `collimate` with these arguments until it exits. A failing test lists its commands.
    pub fn run(&self, arguments: &str) -> Ended {
        eprintln!("collimate {arguments}");
        Ended::of(self.command(arguments).output().expect("the binary"))
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn succeed(&self, arguments: &str) -> Ended {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments}: {}", ended.stderr);
        ended
    }
}

/// A file's bytes.
#[track_caller]
pub fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The objects of a JSONL file.
#[track_caller]
pub fn lines(path: &Path) -> Vec<Line> {
    let text = String::from_utf8(read(path)).expect("UTF-8");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect()
}
