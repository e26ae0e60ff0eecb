//! The records of a stage's data files, and the examples encoded from them, file by file.

use anyhow::{Context as _, Result, ensure};

use super::record_report::RecordReport;
use crate::config::{Data, DataSource, RecordKeys, Stage, Training};
use crate::data;
use crate::data::example::Encoded;
use crate::data::records::{File, LeftOut, Record, read_file};
use crate::terminal;
use crate::train::batch_order::BatchOrder;

/// Records of all files, without those that cannot be read.
pub struct StageRecords {
    files: Vec<FileRecords>,
    bad: LeftOut,
}

/// The records of one file.
struct FileRecords {
    name: String,
    weight: Option<f64>,
    records: Vec<Record>,
}

impl StageRecords {
    /// Reads the files of a `data` key.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn read(data: &Data, keys: &RecordKeys) -> Result<Self> {
        let mut all = Self {
            files: Vec::new(),
            bad: LeftOut::default(),
        };
        for source in &data.sources {
            let File { records, bad } = read_source(source, keys)?;
            all.bad += bad;
            all.files.push(FileRecords {
                name: source.path.display().to_string(),
                weight: source.weight,
                records,
            });
        }
        Ok(all)
    }

    /// Encodes the records of each file. Records that are left out are counted under `key`.
    ///
    /// # Errors
    /// The errors of `encode`.
    pub fn map<T>(
        self,
        key: String,
        encode: impl Fn(Vec<Record>) -> data::Result<Encoded<T>>,
    ) -> data::Result<(ExamplesByFile<T>, RecordReport)> {
        let (mut all, mut files) = (Vec::new(), Vec::new());
        let mut report = RecordReport::new(key, self.count(), self.bad);
        for part in self.files {
            let items = report.take(&part.name, encode(part.records)?);
            files.push((items.len(), part.weight));
            all.extend(items);
        }
        Ok((ExamplesByFile { all, files }, report))
    }

    /// Number of records of all files, including those that could not be read.
    fn count(&self) -> usize {
        let read: usize = self.files.iter().map(|part| part.records.len()).sum();
        read + self.bad.count
    }
}

/// Reads a file of a stage.
///
/// # Errors
/// If the file cannot be read, or has a bad record and bad records are errors.
pub fn read_source(source: &DataSource, keys: &RecordKeys) -> data::Result<File> {
    let columns = source.columns.as_ref().or(keys.columns.as_ref());
    read_file(&source.path, columns, keys.bad_records)
}

/// Reads all files of a key, one after the other.
///
/// # Errors
/// The errors of [`read_source`].
pub fn read_all(data: &Data, keys: &RecordKeys) -> data::Result<Vec<Record>> {
    let mut records = Vec::new();
    for source in &data.sources {
        records.extend(read_source(source, keys)?.records);
    }
    Ok(records)
}

/// The examples of a stage's data files, file after file.
pub struct ExamplesByFile<T> {
    /// The examples.
    pub all: Vec<T>,
    files: Vec<(usize, Option<f64>)>,
}

impl<T> ExamplesByFile<T> {
    /// Examples that lie file after file: `files` has the number of examples of each file, and its
    /// weight.
    pub fn new(all: Vec<T>, files: Vec<(usize, Option<f64>)>) -> Self {
        Self { all, files }
    }

    /// The examples of each file, and its weight.
    pub fn by_file(&self) -> impl Iterator<Item = (&[T], Option<f64>)> {
        let mut rest = self.all.as_slice();
        self.files.iter().map(move |&(count, weight)| {
            let (file, others) = rest.split_at(count);
            rest = others;
            (file, weight)
        })
    }

    /// Removes the examples of these ascending indices and returns them.
    pub fn hold_out(&mut self, held: &[usize]) -> Vec<T> {
        let mut start = 0;
        for (count, _) in &mut self.files {
            let end = start + *count;
            *count -= held.iter().filter(|&&i| (start..end).contains(&i)).count();
            start = end;
        }
        let (mut kept, mut out) = (Vec::new(), Vec::new());
        for (i, item) in std::mem::take(&mut self.all).into_iter().enumerate() {
            if held.binary_search(&i).is_ok() {
                out.push(item)
            } else {
                kept.push(item)
            }
        }
        self.all = kept;
        out
    }

    /// The examples with `make` applied to each.
    pub fn map<U>(self, make: impl Fn(T) -> U) -> ExamplesByFile<U> {
        ExamplesByFile {
            all: self.all.into_iter().map(make).collect(),
            files: self.files,
        }
    }

    /// The order in which training reads the examples, and its batches.
    ///
    /// # Errors
    /// If there are none, weights are given and a file has none left, or `dataloader_drop_last`
    /// leaves no batch.
    pub fn order(&self, stage: Stage, training: &Training, seed: u64) -> Result<BatchOrder> {
        let (examples, batch) = (self.all.len(), training.batch_size);
        ensure!(examples > 0, "no record is left to train on");
        if batch > examples {
            terminal::note_once(format!(
                "{stage}.batch_size is {batch}, and there are {examples} examples to train on: \
                 every step takes {examples}"
            ));
        }
        BatchOrder::new(&self.files, training, seed).with_context(|| format!("[{stage}]"))
    }
}

impl<T> ExamplesByFile<Vec<T>> {
    /// The examples of all lists.
    pub fn flatten(self) -> ExamplesByFile<T> {
        let mut lists = self.all.into_iter();
        let (mut all, mut files) = (Vec::new(), Vec::new());
        for (count, weight) in self.files {
            let start = all.len();
            all.extend(lists.by_ref().take(count).flatten());
            files.push((all.len() - start, weight));
        }
        ExamplesByFile { all, files }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_items_leave_their_own_file() {
        let mut items = ExamplesByFile {
            all: (0..7).collect(),
            files: vec![(3, None), (4, Some(2.0))],
        };
        assert_eq!(items.hold_out(&[1, 3, 6]), [1, 3, 6]);
        let files: Vec<_> = items.by_file().collect();
        assert_eq!(files, [(&[0, 2][..], None), (&[4, 5][..], Some(2.0))]);
    }

    #[test]
    fn flattened_lists_stay_with_their_file() {
        let lists = ExamplesByFile {
            all: vec![vec![0, 1], vec![], vec![2, 3, 4]],
            files: vec![(2, None), (1, Some(2.0))],
        };
        let items = lists.flatten();
        let files: Vec<_> = items.by_file().collect();
        assert_eq!(files, [(&[0, 1][..], None), (&[2, 3, 4][..], Some(2.0))]);
    }
}
