//! Where a stage's records come from: one file, several, or a weighted mixture.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::records::{Columns, check_columns};

/// The value of a `data` key: a path, a list of paths, or a list of `{ path, weight, columns }`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "DataValue", into = "DataValue")]
pub struct Data {
    /// The files in the order of the list; empty if the key was not given.
    pub sources: Vec<Source>,
}

/// One file of a [`Data`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The file (JSONL, CSV, Parquet or text, perhaps compressed); a relative path starts at the current directory.
    pub path: PathBuf,
    /// Share of the examples that are drawn from this file, relative to the other weights. Without
    /// weights the files are read as if they were one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Columns of this file that are read under another name; unset takes the stage's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a path, a list of paths, or a list of { path = \"…\", weight = …, columns = { … } }"
)]
enum DataValue {
    Path(PathBuf),
    Paths(Vec<PathBuf>),
    Sources(Vec<Source>),
}

impl From<DataValue> for Data {
    fn from(value: DataValue) -> Self {
        let sources = match value {
            DataValue::Path(path) if path.as_os_str().is_empty() => Vec::new(),
            DataValue::Path(path) => vec![Source::whole(path)],
            DataValue::Paths(paths) => paths.into_iter().map(Source::whole).collect(),
            DataValue::Sources(sources) => sources,
        };
        Self { sources }
    }
}

impl From<Data> for DataValue {
    fn from(data: Data) -> Self {
        let mut sources = data.sources;
        if sources.iter().any(Source::is_more_than_a_path) {
            return DataValue::Sources(sources);
        }
        match (sources.pop(), sources.is_empty()) {
            (None, _) => DataValue::Paths(Vec::new()),
            (Some(only), true) => DataValue::Path(only.path),
            (Some(last), false) => DataValue::Paths(
                sources
                    .into_iter()
                    .chain([last])
                    .map(|source| source.path)
                    .collect(),
            ),
        }
    }
}

impl Source {
    /// A file without a weight, whose columns are the stage's.
    pub fn whole(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            weight: None,
            columns: None,
        }
    }

    fn is_more_than_a_path(&self) -> bool {
        self.weight.is_some() || self.columns.is_some()
    }
}

impl Data {
    /// Whether no file was named.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// The files in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|source| source.path.as_path())
    }

    /// [`Self::check`] for files that are all read as they are.
    pub(super) fn check_unweighted(&self, key: &str, keys: &mut Keys<'_, '_>) {
        self.check(key, keys);
        if self.sources.iter().any(|source| source.weight.is_some()) {
            let message = "takes no weights: its files are read as one; remove them";
            keys.wrong(key, "weights", message);
        }
    }

    pub(super) fn check(&self, key: &str, keys: &mut Keys<'_, '_>) {
        let weights: Vec<f64> = self
            .sources
            .iter()
            .filter_map(|source| source.weight)
            .collect();
        if !weights.is_empty() && weights.len() != self.sources.len() {
            let found = format!("{} weights for {} files", weights.len(), self.sources.len());
            keys.wrong(
                key,
                found,
                "either every file of the list has a weight or none has",
            );
        }
        for weight in weights {
            keys.above(
                key,
                weight,
                0.0,
                "leave a file out of the list to give it no weight",
            );
        }
        for columns in self.sources.iter().filter_map(|s| s.columns.as_ref()) {
            check_columns(key, columns, keys);
        }
        if self.paths().any(|path| path.as_os_str().is_empty()) {
            keys.wrong(key, "\"\"", "names an empty path; remove it from the list");
        }
    }
}

/// Held-out records of a stage that can cut them from its own data: `eval_data` wins, else
/// `eval_fraction`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Records that are never trained on. Empty: `eval_fraction` of `data` is held out instead.
    pub eval_data: Data,
    /// Share of `data` that is held out when there is no `eval_data`; 0 holds nothing out.
    pub eval_fraction: f64,
}

impl HeldOut {
    /// Whether there is anything to evaluate on.
    pub fn is_empty(&self) -> bool {
        self.eval_data.is_empty() && self.eval_fraction == 0.0
    }

    pub(super) fn check(&self, keys: &mut Keys<'_, '_>) {
        self.eval_data.check_unweighted("eval_data", keys);
        if !(0.0..1.0).contains(&self.eval_fraction) {
            keys.wrong(
                "eval_fraction",
                self.eval_fraction,
                "must be 0 or larger and below 1; 0.05 is usual",
            );
        } else if self.eval_fraction > 0.0 && !self.eval_data.is_empty() {
            keys.wrong(
                "eval_fraction",
                self.eval_fraction,
                "is of no use beside eval_data; remove one of the two",
            );
        }
    }
}
