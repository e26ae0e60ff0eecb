//! Data files of a stage: one file, several, or a weighted mixture.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Keys;
use super::records::{COLUMNS, Columns, check_columns};

/// The value of a `data` key: a path, a list of paths, or a list of `{ path, weight, columns }`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "DataValue", into = "DataValue")]
#[schemars(extend("x-type" = "path, list of paths, or list of `{ path, weight, columns }`"))]
pub struct Data {
    /// The files in the order of the list; empty if the key was not given.
    pub sources: Vec<DataSource>,
}

/// A file in the list of a key, with its own weight or columns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSource {
    /// File of records: JSON Lines, CSV, Parquet or plain text, optionally compressed.
    ///
    /// A relative path starts at the current directory.
    #[schemars(extend("x-type" = "path", "x-default" = "required"))]
    pub path: PathBuf,
    /// Share of the examples drawn from this file, relative to the weights of the other files; only
    /// in `data`.
    ///
    /// Either every file of the list has a weight or none has; without weights the files are read
    /// as one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Field names mapped to the columns of this file that hold them.
    #[schemars(extend("x-type" = COLUMNS, "x-default" = "the stage's `columns`"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a path, a list of paths, or a list of { path = \"…\", weight = …, \
                 columns = { … } }"
)]
enum DataValue {
    Path(PathBuf),
    Paths(Vec<PathBuf>),
    Sources(Vec<DataSource>),
}

impl From<DataValue> for Data {
    fn from(value: DataValue) -> Self {
        let sources = match value {
            DataValue::Path(path) if path.as_os_str().is_empty() => Vec::new(),
            DataValue::Path(path) => vec![DataSource::whole(path)],
            DataValue::Paths(paths) => paths.into_iter().map(DataSource::whole).collect(),
            DataValue::Sources(sources) => sources,
        };
        Self { sources }
    }
}

impl From<Data> for DataValue {
    fn from(data: Data) -> Self {
        let mut sources = data.sources;
        if sources.iter().any(DataSource::is_more_than_a_path) {
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

impl<P: Into<PathBuf>> From<P> for Data {
    /// One file.
    fn from(path: P) -> Self {
        DataValue::Path(path.into()).into()
    }
}

impl DataSource {
    /// A file without a weight, with the stage's columns.
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
    /// Whether no file is named.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// The files in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|source| source.path.as_path())
    }

    /// Checks a key that takes no weights.
    pub(super) fn check_unweighted(&self, key: &str, keys: &mut Keys<'_, '_>) {
        self.check(key, keys);
        if self.sources.iter().any(|source| source.weight.is_some()) {
            let message = "takes no weights, because its files are read as one; remove them";
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
                "remove the file from the list to give it no weight",
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

/// Held-out records of a stage: files of their own, or a share of the stage's data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeldOut {
    /// Records to evaluate on, which are never trained on.
    #[schemars(extend("x-default" = "unset"))]
    pub eval_data: Data,
    /// Share of `data` that is held out for evaluation when there is no `eval_data`; 0 holds out
    /// none.
    ///
    /// Must be below 1.
    pub eval_fraction: f64,
}

impl HeldOut {
    /// Whether no records are held out.
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
                "has no effect beside eval_data; remove one of the two",
            );
        }
    }
}
