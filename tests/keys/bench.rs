//! The workspace in which rows are tried: tiny models and data, and runs that several rows share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;

use collimate::config::diff::{Effect, diff};
use collimate::config::{Config, Override};
use serde_json::{Value, json};

use crate::orpo_table::ORPO;
use crate::row::{Found, Row};
use crate::support::{Line, Workspace, example, lines, pair, prompt, read, records};

/// Settings of the few steps of each stage, unless a row sets others.
const SHORT: [(&str, &str); 7] = [
    ("pretrain", "pretrain.max_steps=3"),
    ("sft", "sft.max_steps=3"),
    ("dpo", "dpo.max_steps=3"),
    ("orpo", "orpo.max_steps=3"),
    ("reward", "reward.max_steps=3"),
    ("judge", "judge.max_steps=3"),
    ("ppo", "ppo.max_steps=2"),
];

const JUDGE: &str = r#"
[judge]
from = "models/sft"
data = "pairs.jsonl"
eval_fraction = 0.1
max_length = 48
batch_size = 16
learning_rate = 5e-3
"#;

/// A PPO configuration without evaluations.
const PPO: &str = r#"
[ppo]
from = "models/sft"
reward_model = "models/reward"
prompts = "prompts.jsonl"
batch_size = 8
num_mini_batches = 2
num_ppo_epochs = 2
max_new_tokens = 10
learning_rate = 1e-3
save_steps = 0
"#;

/// Keys of PPO's evaluation.
const WATCHED: &str = r#"eval_prompts = "prompts_eval.jsonl"
lexicon = "lexicon.tsv"
judge_model = "models/reward"
eval_samples = 8
"#;

/// A reward program that scores each completion by the number of letters that the script names.
const SCRIPT: &str = r#"while read -r line; do
  scores=$(printf '%s' "$line" | grep -o '"completion":"[^"]*"' | while read -r text; do
    printf '%s' "$text" | tr -cd 'LETTERS' | wc -c; done | tr '\n' ',' | tr -d ' ')
  echo "[${scores%,}]"
done
"#;

/// A chat template that renders every turn unchanged.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role[:1] }}:{{ m.content }}{{ eos_token }}{% \
                        endfor %}\
                        {% if add_generation_prompt %}a:{% endif %}";

/// A workspace in which rows are tried.
pub struct Bench {
    workspace: Workspace,
    done: RefCell<HashMap<String, Rc<Outcome>>>,
}

/// Weights, metrics and configuration of a finished run.
struct Outcome {
    config: Config,
    weights: Vec<u8>,
    folder: PathBuf,
    metrics: Vec<Line>,
}

/// A prompt with reference answers for the rules that need one.
fn answered(i: usize) -> Value {
    let mut record = prompt(i);
    record["answer"] = json!(["dog", "boat", "house"][i % 3]);
    record["other"] = json!(["picture", "garden", "dog"][i % 3]);
    record["number"] = json!(5);
    record["far"] = json!(500);
    record
}

/// A text unlike the others.
fn sentence(i: usize) -> Value {
    json!({"text": format!("item {i} of {}, and {} more", i * i, i + 7)})
}

/// A record whose `field` has another name, beside a column with another text.
fn named(field: &str, mut record: Value) -> Value {
    let text = record[field].take();
    let fields = record.as_object_mut().expect("a record");
    fields.remove(field);
    let second = format!("again {}", text.as_str().expect("a text"));
    fields.insert("first".to_owned(), text);
    fields.insert("second".to_owned(), second.into());
    record
}

impl Bench {
    /// Trained models, the other files that each configuration names, and the configurations that
    /// the rows change.
    pub fn new() -> Self {
        let workspace = Workspace::trained();
        workspace.write("prompts.jsonl", &records(0, 30, answered));
        workspace.write("other_prompts.jsonl", &records(7, 20, answered));
        workspace.write("other_prompts_eval.jsonl", &records(95, 8, prompt));
        workspace.write("other_sft.jsonl", &records(300, 100, example));
        workspace.write("other_pairs.jsonl", &records(300, 100, pair));
        workspace.write("other_text.jsonl", &records(0, 60, sentence));
        workspace.write(
            "named_text.jsonl",
            &records(0, 60, |i| named("text", sentence(i))),
        );
        workspace.write(
            "named_sft.jsonl",
            &records(0, 60, |i| named("prompt", example(i))),
        );
        workspace.write(
            "named_pairs.jsonl",
            &records(0, 60, |i| named("prompt", pair(i))),
        );
        workspace.write(
            "named_prompts.jsonl",
            &records(0, 30, |i| named("prompt", answered(i))),
        );
        workspace.write("other_lexicon.tsv", "dog\t1.0\nboat\t-1.0\nhappy\t0.5\n");
        workspace.write("chat.jinja", TEMPLATE);
        workspace.write("letters.sh", &SCRIPT.replace("LETTERS", "aeo"));
        workspace.write("other_letters.sh", &SCRIPT.replace("LETTERS", "st"));
        let text = fs::read_to_string(workspace.path("config.toml")).expect("a configuration");
        let (start, _) = text.split_once("\n[ppo]").expect("a table");
        workspace.write("plain.toml", &[start, ORPO, JUDGE, PPO].concat());
        workspace.write("watched.toml", &[start, ORPO, JUDGE, PPO, WATCHED].concat());
        let (head, rest) = start.split_once("[model]").expect("a table");
        let (_, tail) = rest.split_once("[tokenizer]").expect("a table");
        let folder = "[model]\nfrom = \"models/pretrain\"\n\n";
        workspace.write("from.toml", &[head, folder, "[tokenizer]", tail].concat());
        let bench = Self {
            workspace,
            done: RefCell::default(),
        };
        bench.add_padded_model();
        bench.add_chat_model();
        bench
    }

    fn copy_model(&self, from: &str, to: &str) -> PathBuf {
        let to = self.workspace.path(to);
        fs::create_dir_all(&to).expect("a folder");
        for entry in fs::read_dir(self.workspace.path(from)).expect("a model") {
            let file = entry.expect("an entry").path();
            let name = file.file_name().expect("a name");
            fs::copy(&file, to.join(name)).expect("a writable folder");
        }
        to
    }

    /// A model with a chat template, `models/chat`, and conversations of two answers.
    fn add_chat_model(&self) {
        let to = self.copy_model("models/pretrain", "models/chat");
        fs::write(to.join("chat_template.jinja"), TEMPLATE).expect("a writable folder");
        let turn = |role: &str, text: String| json!({"role": role, "content": text});
        let chat = |i: usize| {
            json!({"messages": [
                turn("user", format!("{i}?")), turn("assistant", format!("{i}.")),
                turn("user", "so?".to_owned()), turn("assistant", format!("{i}!")),
            ]})
        };
        self.workspace.write("chats.jsonl", &records(10, 40, chat));
    }

    /// A reward model whose padding token is the token that ends an answer: `models/padded`.
    fn add_padded_model(&self) {
        let to = self.copy_model("models/reward", "models/padded");
        let config = read(&to.join("config.json"));
        let mut config: Value = serde_json::from_slice(&config).expect("a configuration");
        let end = match &config["eos_token_id"] {
            Value::Array(ends) => ends[0].clone(),
            end => end.clone(),
        };
        config["pad_token_id"] = end;
        self.workspace
            .write("models/padded/config.json", &config.to_string());
    }

    /// Adds a configuration whose `[[ppo.rewards]]` are these tables.
    pub fn add_rewards(&self, file: &str, tables: &str) {
        let text = fs::read_to_string(self.workspace.path("plain.toml")).expect("a configuration");
        let text = text.replace("reward_model = \"models/reward\"\n", "");
        self.workspace.write(file, &(text + "\n" + tables));
    }

    /// Runs a stage whose model is named by rows: `runs/NAME/STAGE/final`.
    pub fn make(&self, name: &str, stage: &str, settings: &str) {
        let flags = flags(settings);
        let command = format!("{stage} plain.toml --set run.name={name} {flags}");
        self.workspace.succeed(&command);
    }

    /// Tries every row and reports all rows that fail.
    #[track_caller]
    pub fn try_all(&self, rows: Vec<Row>) {
        let wrong: Vec<String> = rows.iter().filter_map(|row| self.attempt(row)).collect();
        assert!(
            wrong.is_empty(),
            "{} of {}:\n{}",
            wrong.len(),
            rows.len(),
            wrong.join("\n")
        );
    }

    /// Tries a row and returns the failure, if any.
    fn attempt(&self, row: &Row) -> Option<String> {
        let fails = |why: String| Some(format!("{}: {why} (under{})", row.set, row.under));
        if let Found::Elsewhere = row.found {
            return None;
        }
        let changed = format!("{} {}", row.under, row.set);
        if let Found::Refused(words) = row.found {
            let ended = self.workspace.run(&self.command(row, "refused", &changed));
            let said = ended.code == Some(1) && ended.stderr.contains(words);
            return (!said).then(|| format!("{}: not refused: {}", row.set, ended.stderr));
        }
        let (before, after) = match (self.outcome(row, &row.under), self.outcome(row, &changed)) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(said), _) | (_, Err(said)) => return fails(said),
        };
        if let Some(why) = wrong_effect(row, &before.config, &after.config) {
            return fails(why);
        }
        let same = before.weights == after.weights;
        match row.found {
            Found::Moves if same => fails("the weights are the same".into()),
            Found::Moves => None,
            Found::Shows(metric) => wrong_metric(row, metric, &before, &after),
            _ if !same => fails("the weights are others".into()),
            Found::Logs(metric) => wrong_metric(row, metric, &before, &after),
            Found::Writes(file) => {
                let bytes = |run: &Outcome| read(&run.folder.join("final").join(file));
                let same = bytes(&before) == bytes(&after);
                same.then(|| format!("{}: {file} is the same", row.set))
            }
            _ => None,
        }
    }

    fn command(&self, row: &Row, name: &str, settings: &str) -> String {
        let short = SHORT.into_iter().find(|(stage, _)| *stage == row.stage);
        let short = short.map_or("", |(_, flag)| flag);
        let settings = format!("run.name={name} run.threads=1 {short} {settings}");
        format!("{} {} {}", row.stage, row.file, flags(&settings))
    }

    /// The result of a run with these settings, which is run only once; or its error message.
    fn outcome(&self, row: &Row, settings: &str) -> Result<Rc<Outcome>, String> {
        let settings = settings.split_whitespace().collect::<Vec<_>>().join(" ");
        let place = format!("{} {} {settings}", row.stage, row.file);
        if let Some(known) = self.done.borrow().get(&place) {
            return Ok(Rc::clone(known));
        }
        let name = format!("run-{}", self.done.borrow().len());
        let command = self.command(row, &name, &settings);
        let config = self.resolved(row.file, &command)?;
        let mut process = self.workspace.command(&command);
        let output = process
            .env("COLLIMATE_KEY", "a token")
            .output()
            .expect("the binary");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let folder = self
            .workspace
            .path("")
            .join(config.run.folder())
            .join(row.stage);
        let files = ["model.safetensors", "adapter_model.safetensors"];
        let files = files.map(|file| folder.join("final").join(file));
        let weights = files.iter().find(|file| file.exists()).expect("a model");
        let outcome = Rc::new(Outcome {
            config,
            weights: read(weights),
            metrics: lines(&folder.join("metrics.jsonl")),
            folder,
        });
        self.done.borrow_mut().insert(place, Rc::clone(&outcome));
        Ok(outcome)
    }

    /// The resolved configuration of a command.
    fn resolved(&self, file: &str, command: &str) -> Result<Config, String> {
        let words = command.split_whitespace().filter(|word| word.contains('='));
        let overrides = words.map(|word| word.parse::<Override>().map_err(|e| e.to_string()));
        let overrides = overrides.collect::<Result<Vec<_>, _>>()?;
        Config::load(&self.workspace.path(file), &overrides).map_err(|e| e.to_string())
    }
}

/// `A=1 B=2` → `--set A=1 --set B=2`
fn flags(settings: &str) -> String {
    let flags = settings
        .split_whitespace()
        .map(|set| format!("--set {set}"));
    flags.collect::<Vec<_>>().join(" ")
}

/// The failure if a metric has the same values in both runs, or no values.
fn wrong_metric(row: &Row, metric: &str, before: &Outcome, after: &Outcome) -> Option<String> {
    let column = |run: &Outcome| {
        let values = run.metrics.iter();
        let values = values.filter_map(|line| line.get(metric).cloned());
        values.collect::<Vec<Value>>()
    };
    let (before, after) = (column(before), column(after));
    let same = before == after || before.is_empty();
    same.then(|| format!("{}: {metric} is {before:?} in both", row.set))
}

/// The failure if `config::diff` disagrees with the row about the effect of the key.
fn wrong_effect(row: &Row, before: &Config, after: &Config) -> Option<String> {
    let changes = diff(before, after).expect("a difference");
    let key = row.set.split('=').next().expect("a key");
    // A part of a table is a key of its own on one side, and belongs to the whole table on the
    // other.
    let part = |whole: &str, part: &str| {
        let rest = part.strip_prefix(whole);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let of_key = |changed: &str| part(key, changed) || part(changed, key);
    let Some(change) = changes.iter().find(|change| of_key(&change.key)) else {
        return Some(format!("config::diff sees no change of {key}: {changes:?}"));
    };
    let expected = match row.found {
        Found::Stays => Effect::Harmless,
        _ => Effect::ChangesResult,
    };
    (change.effect != expected).then(|| format!("config::diff says {:?}", change.effect))
}
