//! The reference of every key: `docs/configuration.md` and `collimate config KEY`.
//!
//! The reference repeats no text: names and types come from the JSON schemas of the types that read
//! the configuration, sentences from their doc comments, defaults from their serialised
//! [`Default`], and bounds from `config::bounds`. Two schema attributes add to the types: `x-type`
//! describes the type of a value, and `x-default` a default that other keys decide.

mod entry;
mod lookup;
mod markdown;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::data::DataSource;
use super::model::ModelTable;
use super::rewards::{RewardComponent, RewardKind};
use super::stage::for_each_stage;
use super::{LoraTable, Run, TokenizerTable};
use entry::{KeyEntry, schema_of};

pub use lookup::{UnknownKey, explain};
pub use markdown::markdown;

/// The keys of one table, or of several tables that have the same ones.
#[derive(Clone, Debug)]
struct KeyTable {
    /// Full names of the tables, such as `reward` and `judge`.
    names: Vec<String>,
    /// The tables as they are written in a file, such as `[reward]`.
    heading: String,
    /// Purpose of the table, in one sentence.
    summary: String,
    /// Further paragraphs on the table.
    details: String,
    /// The keys in the order of their fields.
    keys: Vec<KeyEntry>,
}

impl KeyTable {
    /// The table of the keys of `T`, which has the default values `defaults`.
    fn new<T: JsonSchema>(names: &[impl ToString], defaults: &impl Serialize) -> Self {
        let schema = schema_of::<T>();
        let defaults = serde_json::to_value(defaults).unwrap_or_default();
        let (summary, details) = entry::paragraphs(&schema);
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let headings: Vec<String> = names.iter().map(|name| format!("`[{name}]`")).collect();
        Self {
            heading: headings.join(", "),
            summary,
            details,
            keys: entry::keys(&schema, &defaults, &names[0]),
            names,
        }
    }

    /// The table of the keys of `T` with these defaults.
    fn of<T: JsonSchema + Serialize>(names: &[impl ToString], defaults: &T) -> Self {
        Self::new::<T>(names, defaults)
    }

    fn with_heading(mut self, heading: &str) -> Self {
        heading.clone_into(&mut self.heading);
        self
    }

    fn key(&self, name: &str) -> Option<&KeyEntry> {
        self.keys.iter().find(|key| key.name == name)
    }
}

macro_rules! stage_tables {
    ($($(#[$doc:meta])* $stage:ident, $table:ident: $keys:ty;)*) => {
        [$(KeyTable::of(&[stringify!($table)], &<$keys>::default())),*]
    };
}

/// The tables of the stages; tables with the same keys are one.
fn stages() -> Vec<KeyTable> {
    let mut tables = Vec::<KeyTable>::new();
    for table in for_each_stage!(stage_tables) {
        match tables.last_mut().filter(|last| last.keys == table.keys) {
            None => tables.push(table),
            Some(last) => {
                last.heading = format!("{}, {}", last.heading, table.heading);
                last.names.extend(table.names);
            }
        }
    }
    tables
}

/// All tables in the order of a configuration file.
fn tables() -> Vec<KeyTable> {
    let mut tables = vec![
        KeyTable::of(&["run"], &Run::default()),
        KeyTable::of(&["model"], &ModelTable::default()),
        KeyTable::of(&["tokenizer"], &TokenizerTable::default()),
    ];
    tables.extend(stages());
    tables.push(rewards());
    tables.extend(RewardKind::all().iter().map(reward_of_type));
    let lora = KeyTable::of(&names_of(&tables, &["lora"]), &LoraTable::default());
    let data = names_of(
        &tables,
        &["data", "eval_data", "prompts", "eval_prompts", "ptx_data"],
    );
    let data = KeyTable::new::<DataSource>(&data, &Value::Null);
    tables.push(lora);
    tables.push(
        data.with_heading(
            "Entries of `data`, `eval_data`, `prompts`, `eval_prompts` and `ptx_data`",
        ),
    );
    tables
}

/// Names of the tables outside others that have `key`, such as `sft` for `learning_rate`.
pub fn tables_with(key: &str) -> Vec<String> {
    let tables = tables()
        .into_iter()
        .filter(|table| table.key(key).is_some());
    let names = tables.flat_map(|table| table.names);
    names.filter(|name| !name.contains('.')).collect()
}

/// Full names of the keys called one of `keys`.
fn names_of(tables: &[KeyTable], keys: &[&str]) -> Vec<String> {
    let mut names = Vec::new();
    for key in keys {
        let with_key = tables.iter().filter(|table| table.key(key).is_some());
        let in_full = |name: &String| format!("{name}.{key}");
        names.extend(with_key.flat_map(|table| table.names.iter().map(in_full)));
    }
    names
}

/// The keys that every table of `[[ppo.rewards]]` has.
fn rewards() -> KeyTable {
    let default = RewardComponent::new(RewardKind::Model(Default::default()));
    let mut table = KeyTable::of(&["ppo.rewards"], &default);
    let words = entry::words_of_variants(&schema_of::<RewardKind>(), "type");
    let summary = "Scorer of the component, which decides its other keys.";
    let kind = KeyEntry::of_words("type", summary, "required", words);
    table.keys.insert(0, kind);
    table.with_heading("`[[ppo.rewards]]`")
}

/// The keys of one `type` of `[[ppo.rewards]]`.
fn reward_of_type(kind: &RewardKind) -> KeyTable {
    let name = format!("ppo.rewards.{}", kind.word());
    let names = [name.as_str()];
    let table = match kind {
        RewardKind::Model(keys) => KeyTable::of(&names, keys),
        RewardKind::Ensemble(keys) => KeyTable::of(&names, keys),
        RewardKind::Classifier(keys) => KeyTable::of(&names, keys),
        RewardKind::Exact(keys) => KeyTable::of(&names, keys),
        RewardKind::Numeric(keys) => KeyTable::of(&names, keys),
        RewardKind::Regex(keys) => KeyTable::of(&names, keys),
        RewardKind::Length(keys) => KeyTable::of(&names, keys),
        RewardKind::Json(keys) => KeyTable::of(&names, keys),
        RewardKind::Repetition(keys) => KeyTable::of(&names, keys),
        RewardKind::Program(keys) => KeyTable::of(&names, keys),
        RewardKind::Http(keys) => KeyTable::of(&names, keys),
    };
    table.with_heading(&format!("`type = \"{}\"`", kind.word()))
}
