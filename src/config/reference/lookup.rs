//! The reference of one key or table, for `collimate config KEY`.

use std::fmt::Write as _;

use super::entry::KeyEntry;
use super::{KeyTable, tables};
use crate::config::{names, trl_defaults};

/// A name that is neither a key nor a table.
#[derive(Debug, thiserror::Error)]
#[error("{name}: no such key or table; {mend}")]
pub struct UnknownKey {
    name: String,
    mend: String,
}

/// The reference's text on `name`: a key in full, such as `ppo.kl_coef`; a table, such as `ppo`; or
/// a key's name alone, which is searched in all tables. Without a name, the list of tables.
///
/// # Errors
/// [`UnknownKey`] with the nearest name.
pub fn explain(name: Option<&str>) -> Result<String, UnknownKey> {
    let tables = tables();
    let Some(name) = name else {
        return Ok(overview(&tables));
    };
    let name = normalised(name);
    let mut found = Vec::new();
    if let Some((table, key)) = name.rsplit_once('.') {
        found.extend(keys_in(&tables, table, key).map(|key| key_text(&name, key)));
    }
    if let Some(table) = tables.iter().find(|table| table.names.contains(&name)) {
        found.push(table_text(table));
    }
    if found.is_empty() && !name.contains('.') {
        let with_key = tables
            .iter()
            .filter_map(|table| Some((table, table.key(&name)?)));
        found.extend(with_key.map(|(table, key)| key_text(&in_full(table, &name), key)));
    }
    match found.is_empty() {
        true => Err(unknown(&tables, name)),
        false => Ok(found.join("\n")),
    }
}

/// `[[ppo.rewards]]`, `ppo.rewards[0].weight` and `ppo.rewards.0.weight` → the names of the tables.
fn normalised(name: &str) -> String {
    let parts = name.split(['.', '[', ']']);
    let named = parts.filter(|part| !part.is_empty() && part.parse::<usize>().is_err());
    named.collect::<Vec<_>>().join(".")
}

/// The keys called `key` in `table`; for `ppo.rewards` also those of all its types.
fn keys_in<'a>(
    tables: &'a [KeyTable],
    table: &'a str,
    key: &'a str,
) -> impl Iterator<Item = &'a KeyEntry> {
    let of_types = format!("{table}.");
    let concerns = move |names: &[String]| {
        names.iter().any(|name| name == table)
            || table == "ppo.rewards" && names[0].starts_with(&of_types)
    };
    let tables = tables.iter().filter(move |table| concerns(&table.names));
    tables.filter_map(move |table| table.key(key))
}

fn overview(tables: &[KeyTable]) -> String {
    let mut text = "Tables of the configuration (collimate config TABLE lists the keys of one, \
                    collimate config TABLE.KEY explains a key):\n"
        .to_owned();
    for table in tables {
        let _ = write!(
            text,
            "\n{}\n    {}\n",
            table.names.join(", "),
            plain(&table.summary)
        );
    }
    text
}

fn table_text(table: &KeyTable) -> String {
    let mut text = format!("{}: {}\n", plain(&table.heading), plain(&table.summary));
    if !table.details.is_empty() {
        let _ = write!(text, "\n{}\n", plain(&table.details));
    }
    for key in &table.keys {
        let KeyEntry {
            name,
            takes,
            default,
            summary,
            ..
        } = key;
        let _ = write!(
            text,
            "\n{name} ({takes}; default: {default})\n    {summary}\n"
        );
    }
    plain(&text)
}

fn key_text(name: &str, key: &KeyEntry) -> String {
    let KeyEntry {
        takes,
        default,
        summary,
        details,
        words,
        ..
    } = key;
    let mut text = format!("{name} ({takes}; default: {default})\n    {summary}\n");
    for (word, meaning) in words {
        let _ = writeln!(text, "    - {word}: {meaning}");
    }
    for paragraph in details
        .split("\n\n")
        .filter(|paragraph| !paragraph.is_empty())
    {
        let _ = writeln!(text, "    {paragraph}");
    }
    plain(&text)
}

/// Text for the terminal: backticks are Markdown's.
fn plain(text: &str) -> String {
    text.replace('`', "")
}

fn in_full(table: &KeyTable, key: &str) -> String {
    format!("{}.{key}", table.names[0])
}

fn unknown(tables: &[KeyTable], name: String) -> UnknownKey {
    let meant = |near: String| format!("did you mean `{near}`?");
    let of_trl = || {
        let (table, key) = name.rsplit_once('.')?;
        trl_defaults::counterpart(table, key)
    };
    let mend = near_in_table(tables, &name)
        .map(meant)
        .or_else(of_trl)
        .or_else(|| near_anywhere(tables, &name).map(meant))
        .unwrap_or_else(|| "`collimate config` lists the tables".to_owned());
    UnknownKey { name, mend }
}

/// The key of the named table that was meant.
fn near_in_table(tables: &[KeyTable], name: &str) -> Option<String> {
    let (table, key) = name.rsplit_once('.')?;
    let named = tables
        .iter()
        .find(|known| known.names.iter().any(|name| name == table))?;
    let keys: Vec<String> = named.keys.iter().map(|key| key.name.clone()).collect();
    Some(format!("{table}.{}", names::meant(key, &keys)?))
}

/// The name of a table, of a key or of a key in full that is nearest.
fn near_anywhere(tables: &[KeyTable], name: &str) -> Option<String> {
    let mut known: Vec<String> = Vec::new();
    for table in tables {
        known.extend(table.names.iter().cloned());
        for key in &table.keys {
            known.push(key.name.clone());
            known.extend(
                table
                    .names
                    .iter()
                    .map(|table| format!("{table}.{}", key.name)),
            );
        }
    }
    names::nearest(name, known.iter().map(String::as_str)).map(str::to_owned)
}
