//! A fresh folder to run the binary in, and the result of a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

/// A separate folder for one test. Relative paths in arguments start there.
pub struct Workspace(TempDir);

/// Exit code and output of one run of the binary.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Asserts that the command was refused, with these parts in its message.
    #[track_caller]
    pub fn assert_refused(&self, says: &[&str]) {
        let text = &self.stderr;
        assert_eq!(self.code, Some(1), "{text:.2000}");
        assert!(!text.contains("panicked"), "{text:.2000}");
        for part in says {
            assert!(text.contains(part), "no {part:?} in\n{text:.2000}");
        }
    }
}

/// Folder of a fixture model, made with transformers.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/models")
        .join(name)
}

impl Workspace {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, contents: &str) {
        fs::write(self.path(name), contents).expect("a writable folder");
    }

    /// Copies a fixture model into the workspace as `model`.
    pub fn copy_model(&self, name: &str) {
        fs::create_dir(self.path("model")).expect("a writable folder");
        for file in ["config.json", "model.safetensors"] {
            let to = self.path("model").join(file);
            fs::copy(fixture(name).join(file), to).expect("a fixture");
        }
    }

    /// The `collimate` command with these space-separated arguments.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_collimate"));
        command
            .args(arguments.split_whitespace())
            .current_dir(self.0.path());
        command
    }

    /// Runs `collimate` with these arguments until it exits. A failing test lists its commands.
    pub fn run(&self, arguments: &str) -> Ended {
        eprintln!("collimate {arguments}");
        let output = self.command(arguments).output().expect("the binary");
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that must succeed, and returns the lines that it wrote with `--out
    /// out.jsonl`.
    pub fn lines(&self, arguments: &str) -> Vec<Value> {
        let ended = self.run(&format!("{arguments} --out out.jsonl"));
        assert_eq!(ended.code, Some(0), "{arguments}: {}", ended.stderr);
        let text = fs::read_to_string(self.path("out.jsonl")).expect("an output file");
        let line = |line| serde_json::from_str(line).expect("a JSON line");
        text.lines().map(line).collect()
    }

    /// Names of all files in the folder, to check that nothing is left behind.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("a readable folder");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<String> = entries
            .map(|entry| name(entry).to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// A field's list of numbers, each read as `f32`.
pub fn floats(line: &Value, field: &str) -> Vec<f32> {
    let items = line[field]
        .as_array()
        .unwrap_or_else(|| panic!("{field} in {line}"));
    items
        .iter()
        .map(|item| item.to_string().parse().expect("a number"))
        .collect()
}

/// A field's list of token ids.
pub fn ids(line: &Value, field: &str) -> Vec<u32> {
    serde_json::from_value(line[field].clone()).unwrap_or_else(|e| panic!("{field}: {e}"))
}
