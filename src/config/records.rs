//! The keys of every stage that reads records: columns, bad records and long records.

use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Keys;

/// Field name → name of the file's column that holds it, such as `prompt` → `question`.
pub type Columns = BTreeMap<String, String>;

/// Type of [`Columns`] in the reference.
pub(super) const COLUMNS: &str = "table of field = \"column\"";

/// The keys of every stage that reads records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RecordKeys {
    /// Field names mapped to the columns of the stage's files that hold them, such as
    /// `{ prompt = "question" }`.
    ///
    /// A file of a list may have its own `columns`, which then replace these. In `[ppo]` they apply
    /// to `prompts` and `eval_prompts`, not to `ptx_data`.
    #[schemars(extend("x-type" = COLUMNS))]
    pub columns: Option<Columns>,
    /// Policy for records that cannot be read or used.
    pub bad_records: BadRecords,
    /// Largest share of bad records that `bad_records = "skip"` tolerates before the stage fails.
    ///
    /// Between 0 and 1.
    pub max_bad_share: f64,
}

/// Policy for records that cannot be read or used.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum BadRecords {
    /// Stop, and name the record.
    #[default]
    Error,
    /// Leave the record out and count it; the first ten are named.
    Skip,
}

/// Policy for records that are longer than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TooLong {
    /// Cut the start of a prompt (after BOS) or the end of an answer or text.
    // A prompt without an answer is cut until it fits. A prompt that leaves its answer no room is
    // cut until the answer has up to half of the limit.
    Truncate,
    /// Leave the record out and count it.
    Skip,
    /// Stop, and name the record.
    Error,
}

impl Default for RecordKeys {
    fn default() -> Self {
        Self {
            columns: None,
            bad_records: BadRecords::Error,
            max_bad_share: 0.1,
        }
    }
}

impl RecordKeys {
    pub(super) fn check(&self, keys: &mut Keys<'_, '_>) {
        if let Some(columns) = &self.columns {
            check_columns("columns", columns, keys);
        }
        if !(0.0..=1.0).contains(&self.max_bad_share) {
            let message = "must be from 0 to 1; 0.1 fails where more than one record in ten is bad";
            keys.wrong("max_bad_share", self.max_bad_share, message);
        } else if self.max_bad_share != Self::default().max_bad_share
            && self.bad_records == BadRecords::Error
        {
            let message =
                "has no effect unless bad_records = \"skip\"; set that, or remove this key";
            keys.wrong("max_bad_share", self.max_bad_share, message);
        }
    }
}

/// Reports an empty name, or a column that is read twice.
pub(super) fn check_columns(key: &str, columns: &Columns, keys: &mut Keys<'_, '_>) {
    let mut seen = BTreeSet::new();
    for (field, column) in columns {
        if field.is_empty() || column.is_empty() {
            let message =
                "has an empty name; write field = \"column\", for example prompt = \"question\"";
            keys.wrong(key, format!("{field:?} = {column:?}"), message);
        } else if !seen.insert(column) {
            let message = "reads one column under two names; keep one of them";
            keys.wrong(key, format!("{column:?}"), message);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::diff::{Effect, diff};
    use crate::config::tests::{refused, resolve, resolve_text};

    #[test]
    fn every_stage_has_the_keys() {
        for stage in ["pretrain", "sft", "reward", "ppo"] {
            let sets = [
                format!("{stage}.bad_records=skip"),
                format!("{stage}.max_bad_share=0.5"),
                format!("{stage}.columns={{ prompt = \"question\" }}"),
            ];
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            let config = resolve(&sets).unwrap();
            let text = config.to_toml().unwrap();
            assert!(text.contains("prompt = \"question\""), "{stage}: {text}");
            assert!(text.contains("bad_records = \"skip\""), "{stage}: {text}");
        }
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        let skip = "sft.bad_records=skip";
        refused(
            &[skip, "sft.max_bad_share=1.5"],
            &["sft.max_bad_share", "from 0 to 1"],
        );
        refused(
            &["sft.max_bad_share=0.5"],
            &["sft.max_bad_share", "bad_records = \"skip\""],
        );
        refused(&["sft.bad_records=ignore"], &["sft.bad_records", "ignore"]);
        let twice = "sft.columns={ prompt = \"q\", completion = \"q\" }";
        refused(&[twice], &["sft.columns", "two names"]);
        let of_a_file = "sft.data=[{ path = \"a.jsonl\", columns = { prompt = \"\" } }]";
        refused(&[of_a_file], &["sft.data", "empty name"]);
    }

    #[test]
    fn columns_of_a_file_are_written_and_read_again() {
        let files =
            "[{ path = \"a.jsonl\", columns = { prompt = \"q\" } }, { path = \"b.jsonl\" }]";
        let set =
            ["sft.data", "ppo.prompts", "ppo.eval_prompts"].map(|key| format!("{key}={files}"));
        let config = resolve(&[&set[0], &set[1], &set[2]]).unwrap();
        let (sft, ppo) = (config.sft.as_ref().unwrap(), config.ppo.as_ref().unwrap());
        for data in [&sft.data, &ppo.prompts, &ppo.eval_prompts] {
            assert_eq!(data.sources[0].columns.as_ref().unwrap()["prompt"], "q");
            assert_eq!(data.sources[1].columns, None);
        }
        let text = config.to_toml().unwrap();
        assert_eq!(resolve_text(&text, &[]).unwrap(), config, "{text}");
    }

    #[test]
    fn skipping_changes_no_result_that_there_was_and_columns_do() {
        let effect = |set: &str| {
            let changes = diff(&resolve(&[]).unwrap(), &resolve(&[set]).unwrap()).unwrap();
            assert_eq!(changes.len(), 1, "{changes:?}");
            changes[0].effect
        };
        assert_eq!(effect("sft.bad_records=skip"), Effect::Harmless);
        let columns = effect("sft.columns={ prompt = \"question\" }");
        assert_eq!(columns, Effect::ChangesResult);
        assert_eq!(effect("reward.too_long=skip"), Effect::ChangesResult);
    }
}
