//! What the tests of the stages share: a small language, tiny models of it, and runs of the binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// All stages on the small language, each a fraction of a second.
const CONFIG: &str = r#"
[run]
name = "trial"
seed = 3

[model]
family = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 64

[tokenizer]
vocab_size = 320

[pretrain]
data = "text.jsonl"
eval_data = "text_eval.jsonl"
context_length = 32
batch_size = 8
max_steps = 60
learning_rate = 1e-2
eval_steps = 25
save_steps = 7

[sft]
data = "sft.jsonl"
eval_fraction = 0.1
max_length = 48
batch_size = 16
max_steps = 40
learning_rate = 5e-3
eval_steps = 25
save_steps = 7

[dpo]
data = "pairs.jsonl"
eval_fraction = 0.1
max_length = 48
batch_size = 16
max_steps = 30
learning_rate = 1e-3
eval_steps = 25
save_steps = 7

[reward]
data = "pairs.jsonl"
eval_fraction = 0.1
max_length = 48
batch_size = 16
max_steps = 30
learning_rate = 5e-3
eval_steps = 25
save_steps = 7

[ppo]
prompts = "prompts.jsonl"
eval_prompts = "prompts_eval.jsonl"
lexicon = "lexicon.tsv"
batch_size = 16
num_mini_batches = 2
num_ppo_epochs = 2
max_new_tokens = 12
max_steps = 6
learning_rate = 1e-3
kl_coef = 0.05
missing_eos_penalty = 1.0
score_normalization = "running"
eval_steps = 4
eval_samples = 8
save_steps = 2
"#;

/// A folder of its own for one test, with the data and a configuration in it. Commands run there.
pub struct Workspace(TempDir);

/// How a run of the binary ended.
pub struct Ended {
    pub code: Option<i32>,
    pub stderr: String,
}

/// One line of `metrics.jsonl`.
pub type Line = Map<String, Value>;

/// A file of a model folder: its path from the workspace on, and its bytes.
type ModelFile = (String, Vec<u8>);

/// The models of a run that pretrained, fine-tuned and learned a reward: what tests of later stages start from.
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
    /// The data, and [`CONFIG`] as `config.toml`.
    pub fn new() -> Self {
        let workspace = Self(tempfile::tempdir().expect("a temporary folder"));
        workspace.write("config.toml", CONFIG);
        write_data(&workspace);
        workspace
    }

    /// As [`Self::new`], with trained models in `models/STAGE` that the later stages start from.
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

    /// The bytes of a stage's final weights, or adapters.
    pub fn weights(&self, run: &str, stage: &str) -> Vec<u8> {
        let files = ["model.safetensors", "adapter_model.safetensors"];
        let mut paths = files
            .map(|file| self.model(run, stage).join(file))
            .into_iter();
        read(&paths.find(|path| path.exists()).expect("a model"))
    }

    /// The lines of a stage's `metrics.jsonl`.
    pub fn metrics(&self, run: &str, stage: &str) -> Vec<Line> {
        lines(&self.stage(run, stage).join("metrics.jsonl"))
    }

    /// `collimate` with these arguments, parted by spaces.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_collimate"));
        command
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs `collimate` with these arguments to its end.
    pub fn run(&self, arguments: &str) -> Ended {
        let output = self.command(arguments).output().expect("the binary");
        Ended {
            code: output.status.code(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
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

const SUBJECTS: [&str; 6] = [
    "the cat",
    "a sailor",
    "my sister",
    "the old king",
    "a neighbour",
    "the teacher",
];
const VERBS: [&str; 5] = ["saw", "found", "bought", "painted", "lost"];
const HAPPY: [&str; 4] = ["happy", "lovely", "cheerful", "golden"];
const SAD: [&str; 4] = ["sad", "ugly", "dreary", "broken"];
const OBJECTS: [&str; 5] = ["dog", "boat", "house", "picture", "garden"];

/// Sentence `i`'s beginning, which is also a prompt.
fn beginning(i: usize) -> String {
    format!("{} {} a", SUBJECTS[i % 6], VERBS[i / 6 % 5])
}

/// Sentence `i`'s end with an adjective from `adjectives`.
fn end(i: usize, adjectives: [&str; 4]) -> String {
    format!(" {} {}.", adjectives[i / 3 % 4], OBJECTS[i / 7 % 5])
}

fn sentence(i: usize) -> String {
    let adjectives = if i.is_multiple_of(2) { HAPPY } else { SAD };
    beginning(i) + &end(i, adjectives)
}

/// `count` records from `first` on, a line each.
pub fn records(first: usize, count: usize, record: impl Fn(usize) -> Value) -> String {
    (first..first + count)
        .map(|i| record(i).to_string() + "\n")
        .collect()
}

/// A prompt with sentence `i`'s end.
pub fn example(i: usize) -> Value {
    let adjectives = if i.is_multiple_of(2) { HAPPY } else { SAD };
    json!({"prompt": beginning(i), "completion": end(i, adjectives)})
}

/// The happy end is the better one.
pub fn pair(i: usize) -> Value {
    json!({"prompt": beginning(i), "chosen": end(i, HAPPY), "rejected": end(i, SAD)})
}

/// The beginning of a sentence.
pub fn prompt(i: usize) -> Value {
    json!({"prompt": beginning(i)})
}

/// A text of three sentences.
fn document(i: usize) -> Value {
    let three: Vec<String> = (3 * i..3 * i + 3).map(sentence).collect();
    json!({"text": three.join(" ")})
}

fn write_data(workspace: &Workspace) {
    workspace.write("text.jsonl", &records(0, 100, document));
    workspace.write("text_eval.jsonl", &records(100, 10, document));
    workspace.write("sft.jsonl", &records(0, 200, example));
    workspace.write("pairs.jsonl", &records(0, 200, pair));
    workspace.write("prompts.jsonl", &records(0, 30, prompt));
    workspace.write("prompts_eval.jsonl", &records(60, 8, prompt));
    let valence = |words: [&str; 4], valence: &str| words.map(|w| format!("{w}\t{valence}\n"));
    let lexicon = [valence(HAPPY, "2.0"), valence(SAD, "-2.0")].concat();
    workspace.write("lexicon.tsv", &lexicon.concat());
}
