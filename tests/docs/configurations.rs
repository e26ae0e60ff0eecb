//! The configurations of the pages, and those of `configs/`, resolve.

use std::fs;

use collimate::config::Config;
use toml::{Table, Value};

use super::page::{pages, root};

/// A key with a value for it, where a fragment leaves it out: `(table, key, value)`.
const REQUIRED: [(&str, &str, &str); 8] = [
    ("run", "name", "fragment"),
    ("pretrain", "data", "book.txt"),
    ("sft", "data", "chats.jsonl"),
    ("dpo", "data", "pairs.jsonl"),
    ("orpo", "data", "pairs.jsonl"),
    ("reward", "data", "pairs.jsonl"),
    ("judge", "data", "pairs.jsonl"),
    ("ppo", "prompts", "prompts.jsonl"),
];

#[test]
fn every_configuration_resolves() {
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.is("toml")) {
            let text = match block.has("fragment") {
                true => completed(&block.text, &block.place),
                false => block.text.clone(),
            };
            resolve(&text, &block.place);
        }
    }
}

#[test]
fn every_bundled_configuration_resolves() {
    for entry in fs::read_dir(root().join("configs")).expect("configs/") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|end| end == "toml") {
            let text = fs::read_to_string(&path).expect("a readable file");
            resolve(&text, &path.display().to_string());
        }
    }
}

fn resolve(text: &str, place: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    fs::write(&path, text).expect("a writable folder");
    if let Err(error) = Config::load(&path, &[]) {
        panic!("{place}: {error}\n{text}");
    }
}

/// The fragment with a model to start from and the keys that its tables require.
fn completed(fragment: &str, place: &str) -> String {
    let parsed: Result<Table, _> = fragment.parse();
    let mut tables = parsed.unwrap_or_else(|error| panic!("{place}: {error}"));
    for name in ["run", "model"] {
        tables.entry(name).or_insert_with(|| Table::new().into());
    }
    if let Some(Value::Table(model)) = tables.get_mut("model") {
        model.entry("from").or_insert_with(|| "models/small".into());
    }
    for (name, key, value) in REQUIRED {
        if let Some(Value::Table(table)) = tables.get_mut(name) {
            table.entry(key).or_insert_with(|| value.into());
        }
    }
    let trains_reward = tables.contains_key("reward");
    if let Some(Value::Table(ppo)) = tables.get_mut("ppo")
        && !ppo.contains_key("rewards")
        && !trains_reward
    {
        ppo.entry("reward_model")
            .or_insert_with(|| "models/reward".into());
    }
    toml::to_string(&tables).expect("a table is TOML")
}
