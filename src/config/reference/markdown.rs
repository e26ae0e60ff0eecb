//! `docs/configuration.md`.

use std::fmt::Write as _;

use super::entry::KeyEntry;
use super::{KeyTable, tables};
use crate::config::names;

const HEAD: &str = "\
<!-- Generated from the types in src/config: edit their doc comments, then run
     COLLIMATE_BLESS=1 cargo test --release --lib config::reference -->

# Configuration reference

A run is one TOML file. It has a table for each stage, and the tables `[run]`, `[model]` and
`[tokenizer]` that all stages share. A stage runs if the file has its table, even an empty one.

- Only keys that differ from their defaults need to be written. Unknown keys are refused.
- Relative paths start at the current directory.
- `--set TABLE.KEY=VALUE` overrides a key for one command, for example `--set ppo.kl_coef=0.1`.
- `collimate config ppo.kl_coef` prints the entry of a key, `collimate config ppo` a table.
- `runs/NAME/config.toml` has the value of every key of a run.
";

const SHARED: &str = "Keys of every stage";

/// The reference as a page of Markdown.
pub fn markdown() -> String {
    let tables = tables();
    let shared = shared_keys(&tables);
    let mut page = Page {
        text: HEAD.to_owned(),
        described: Vec::new(),
    };
    let first_stage = tables.iter().position(is_stage).unwrap_or_default();
    for (index, table) in tables.iter().enumerate() {
        if index == first_stage {
            page.shared(&shared);
        }
        page.table(table, &shared);
    }
    page.text
}

/// The keys that are the same in all stages, defaults included.
fn shared_keys(tables: &[KeyTable]) -> Vec<KeyEntry> {
    let stages: Vec<&KeyTable> = tables.iter().filter(|table| is_stage(table)).collect();
    let Some((first, others)) = stages.split_first() else {
        return Vec::new();
    };
    let in_all = |key: &&KeyEntry| others.iter().all(|table| table.keys.contains(key));
    first.keys.iter().filter(in_all).cloned().collect()
}

fn is_stage(table: &KeyTable) -> bool {
    table.names.iter().any(|name| names::is_stage(name))
}

/// The page so far.
struct Page {
    text: String,
    /// Keys whose words and details stand on the page, with the heading above them.
    described: Vec<(KeyEntry, String)>,
}

impl Page {
    fn shared(&mut self, keys: &[KeyEntry]) {
        let _ = write!(
            self.text,
            "\n## {SHARED}\n\nThese keys stand in the table of each stage, with the same default.\n"
        );
        self.keys("", keys.iter());
    }

    fn table(&mut self, table: &KeyTable, shared: &[KeyEntry]) {
        let level = match table.names[0].starts_with("ppo.rewards.") {
            true => "###",
            false => "##",
        };
        let KeyTable {
            heading, summary, ..
        } = table;
        let _ = write!(self.text, "\n{level} {heading}\n\n{summary}\n");
        if !table.details.is_empty() {
            let _ = write!(self.text, "\n{}\n", table.details);
        }
        let own = table.keys.iter().filter(|key| !shared.contains(key));
        if is_stage(table) {
            let anchor = anchor(SHARED);
            let _ = write!(
                self.text,
                "\nIt also has the [keys of every stage](#{anchor}).\n"
            );
        }
        self.keys(&table.names[0], own);
    }

    /// Writes a row for each key, then the words and details of those that have some.
    fn keys<'a>(&mut self, table: &str, keys: impl Iterator<Item = &'a KeyEntry>) {
        let keys: Vec<&KeyEntry> = keys.collect();
        self.text
            .push_str("\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n");
        let already = self.described.len();
        for key in &keys {
            let name = self.linked(table, key);
            let cells = [&name, &key.takes, &key.default, &key.summary];
            let cells = cells.map(|cell| cell.replace('|', "\\|"));
            let _ = writeln!(self.text, "| {} |", cells.join(" | "));
        }
        for (key, heading) in &self.described[already..] {
            let _ = write!(self.text, "\n#### {heading}\n\n");
            for (word, meaning) in &key.words {
                let _ = writeln!(self.text, "- `{word}`: {meaning}");
            }
            if !key.details.is_empty() {
                let gap = if key.words.is_empty() { "" } else { "\n" };
                let _ = writeln!(self.text, "{gap}{}", key.details);
            }
        }
    }

    /// Name of the key, with a link to its words and details.
    fn linked(&mut self, table: &str, key: &KeyEntry) -> String {
        if key.words.is_empty() && key.details.is_empty() {
            return format!("`{}`", key.name);
        }
        let same = |described: &KeyEntry| {
            (&described.name, &described.words, &described.details)
                == (&key.name, &key.words, &key.details)
        };
        let heading = match self.described.iter().find(|(described, _)| same(described)) {
            Some((_, heading)) => heading.clone(),
            None => {
                let dot = if table.is_empty() { "" } else { "." };
                let heading = format!("`{table}{dot}{}`", key.name);
                self.described.push((key.clone(), heading.clone()));
                heading
            }
        };
        format!("[`{}`](#{})", key.name, anchor(&heading))
    }
}

/// The anchor of a heading, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars()
        .filter(|c| c.is_alphanumeric() || "-_".contains(*c))
        .collect()
}
