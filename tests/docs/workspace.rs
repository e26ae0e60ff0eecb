//! A folder with a tiny model, in which the binary runs the commands of the pages.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

use super::page::root;

/// Folder of the tiny model, as in the README's example.
pub const MODEL: &str = "models/smollm2-135m";

/// Configuration of the model in place of the README's: one layer and a new tokenizer.
const TINY: &str = r#"
[run]
name = "tiny"

[model]
family = "llama"
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 1024

[tokenizer]
vocab_size = 300

[pretrain]
data = "text.txt"
context_length = 16
batch_size = 1
max_steps = 1
"#;

/// The chat template that the tiny model gets.
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\
                        {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

/// A temporary folder with a tiny model in [`MODEL`] and the repository's `configs`.
pub struct Workspace(TempDir);

impl Workspace {
    pub fn new() -> Self {
        let workspace = Self(tempfile::tempdir().expect("a temporary folder"));
        workspace.write("tiny.toml", TINY);
        fs::copy(root().join("README.md"), workspace.path("text.txt")).expect("a README");
        workspace.succeeds("collimate pretrain tiny.toml", "the tiny model");
        fs::create_dir(workspace.path("models")).expect("a writable folder");
        let trained = workspace.path("runs/tiny/pretrain/final");
        fs::rename(trained, workspace.path(MODEL)).expect("a trained model");
        workspace.write(&format!("{MODEL}/chat_template.jinja"), TEMPLATE);
        workspace
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, contents: &str) {
        fs::write(self.path(name), contents).expect("a writable folder");
    }

    /// Runs `collimate …` with space-separated arguments, and expects exit code 0.
    pub fn succeeds(&self, command: &str, place: &str) {
        let output = self.run(command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{place}: {command}\n{said}");
    }

    fn run(&self, command: &str) -> Output {
        let mut words = command.split_whitespace();
        assert_eq!(words.next(), Some("collimate"), "{command}");
        let mut binary = Command::new(env!("CARGO_BIN_EXE_collimate"));
        binary.args(words).current_dir(self.0.path());
        binary.output().expect("the binary")
    }
}
