//! Columns that are read under other names: `columns = { prompt = "question" }`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Map;

use super::contents::unreadable;
use super::{Record, RecordResult};
use crate::config::Columns;
use crate::data::error::{DataError, Result};

/// Renames the columns of all records.
///
/// # Errors
/// If no record has a column, or a record has a field of the new name already.
pub(super) fn rename(path: &Path, entries: &mut [RecordResult], columns: &Columns) -> Result<()> {
    let records = || entries.iter().filter_map(|entry| entry.as_ref().ok());
    for (field, column) in columns {
        if records().next().is_some() && !records().any(|r| r.fields.contains_key(column)) {
            let message = format!(
                "columns reads `{field}` from the column `{column}`, but no record has it; the \
                 columns are {}",
                present(records())
            );
            return Err(unreadable(path, message));
        }
    }
    let fields: BTreeMap<&str, &str> = columns.iter().map(|(f, c)| (&**c, &**f)).collect();
    let mut records = entries.iter_mut().filter_map(|entry| entry.as_mut().ok());
    records.try_for_each(|record| rename_fields(record, &fields))
}

fn rename_fields(record: &mut Record, fields: &BTreeMap<&str, &str>) -> Result<()> {
    let mut renamed = Map::with_capacity(record.fields.len());
    for (name, value) in std::mem::take(&mut record.fields) {
        let name = fields.get(&*name).map_or(name, |field| (*field).to_owned());
        match renamed.get(&name) {
            Some(taken) if !taken.is_null() && !value.is_null() => {
                let message = format!(
                    "columns reads another column as `{name}`, but the record has a `{name}` of \
                     its own; give that another name too, for example columns = {{ …, other = \
                     \"{name}\" }}"
                );
                let at = record.source.clone();
                return Err(DataError::Record { at, message });
            }
            Some(taken) if !taken.is_null() => {}
            _ => {
                renamed.insert(name, value);
            }
        }
    }
    record.fields = renamed;
    Ok(())
}

/// The columns of all records, in the order of their first occurrence.
fn present<'r>(records: impl Iterator<Item = &'r Record>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for record in records {
        for name in record.fields.keys() {
            if !names.contains(&&**name) {
                names.push(name);
            }
        }
    }
    super::names::listed(&names)
}

#[cfg(test)]
mod tests {
    use super::super::{RecordPlace, RecordSource};
    use super::*;
    use std::sync::Arc;

    fn renamed(
        lines: &[&str],
        columns: &[(&str, &str)],
    ) -> Result<Vec<Map<String, serde_json::Value>>> {
        let path = Path::new("d.jsonl");
        let record = |(i, line): (usize, &&str)| {
            Ok(Record {
                fields: serde_json::from_str(line).unwrap(),
                source: RecordSource {
                    file: Arc::from(path),
                    place: RecordPlace::Line(i + 1),
                },
            })
        };
        let mut entries: Vec<RecordResult> = lines.iter().enumerate().map(record).collect();
        let columns = columns
            .iter()
            .map(|(f, c)| ((*f).to_owned(), (*c).to_owned()));
        rename(path, &mut entries, &columns.collect())?;
        entries.into_iter().map(|e| e.map(|r| r.fields)).collect()
    }

    #[test]
    fn columns_get_their_names_and_keep_their_order() {
        let lines = [r#"{"id": 1, "question": "a"}"#, r#"{"id": 2}"#];
        let found = renamed(&lines, &[("prompt", "question")]).unwrap();
        assert_eq!(found[0].keys().collect::<Vec<_>>(), ["id", "prompt"]);
        assert_eq!(found[1].keys().collect::<Vec<_>>(), ["id"]);
        let swapped = [("prompt", "completion"), ("completion", "prompt")];
        let found = renamed(&[r#"{"prompt": "a", "completion": "b"}"#], &swapped).unwrap();
        assert_eq!(
            (&found[0]["prompt"], &found[0]["completion"]),
            (&"b".into(), &"a".into())
        );
    }

    #[test]
    fn a_column_that_no_record_has_is_told_with_those_that_there_are() {
        let e = renamed(&[r#"{"id": 1, "query": "a"}"#], &[("prompt", "question")]);
        let e = e.unwrap_err().to_string();
        let says = "d.jsonl: columns reads `prompt` from the column `question`, but no record has \
                    it; the columns are `id`, `query`";
        assert!(e.contains(says), "{e}");
    }

    #[test]
    fn a_name_that_is_taken_is_refused() {
        let lines = [
            r#"{"question": "a"}"#,
            r#"{"prompt": "b", "question": "a"}"#,
        ];
        let e = renamed(&lines, &[("prompt", "question")]);
        let e = e.unwrap_err().to_string();
        assert!(
            e.contains("d.jsonl:2: columns") && e.contains("a `prompt` of its own"),
            "{e}"
        );
        let null = [
            r#"{"prompt": null, "question": "a"}"#,
            r#"{"question": "a", "prompt": null}"#,
        ];
        let found = renamed(&null, &[("prompt", "question")]).unwrap();
        assert!(
            found.iter().all(|fields| fields["prompt"] == "a"),
            "{found:?}"
        );
    }
}
