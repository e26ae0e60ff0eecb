//! Which record comes at which place: one shuffled dataset, or a weighted mixture of several.

use anyhow::{Result, bail};
use rollout::random::Purpose;

use super::misfits::Misfit;
use crate::config::{Data, RecordKeys, Source};
use crate::data;
use crate::data::example::Encoded;
use crate::data::loader::{Mixture, Order};
use crate::data::records::{File, LeftOut, Record, read_file};

/// Records of all files, without those that cannot be read.
pub struct Records {
    files: Vec<Part>,
    bad: LeftOut,
}

/// The records of one file.
struct Part {
    name: String,
    weight: Option<f64>,
    records: Vec<Record>,
}

impl Records {
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
            all.files.push(Part {
                name: source.path.display().to_string(),
                weight: source.weight,
                records,
            });
        }
        Ok(all)
    }

    /// Makes items of each file's records. A file may lose some on the way: they are counted under `key`.
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn map<T>(
        self,
        key: String,
        encode: impl Fn(&[Record]) -> data::Result<Encoded<T>>,
    ) -> data::Result<(Items<T>, Misfit)> {
        self.map_owned(key, |records| encode(&records))
    }

    /// As [`Self::map`], of records that `encode` may keep.
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn map_owned<T>(
        self,
        key: String,
        encode: impl Fn(Vec<Record>) -> data::Result<Encoded<T>>,
    ) -> data::Result<(Items<T>, Misfit)> {
        let (mut all, mut files) = (Vec::new(), Vec::new());
        let mut misfit = Misfit::new(key, self.count(), self.bad);
        for part in self.files {
            let items = misfit.take(&part.name, encode(part.records)?);
            files.push((items.len(), part.weight));
            all.extend(items);
        }
        Ok((Items { all, files }, misfit))
    }

    /// Records of all files, those among them that could not be read.
    fn count(&self) -> usize {
        let read: usize = self.files.iter().map(|part| part.records.len()).sum();
        read + self.bad.count
    }
}

/// Reads a file of a stage.
///
/// # Errors
/// If it cannot be read, or has a bad record and those are errors.
pub fn read_source(source: &Source, keys: &RecordKeys) -> data::Result<File> {
    let columns = source.columns.as_ref().or(keys.columns.as_ref());
    read_file(&source.path, columns, keys.bad_records)
}

/// Encoded records, file after file.
pub struct Items<T> {
    /// The items.
    pub all: Vec<T>,
    files: Vec<(usize, Option<f64>)>,
}

impl<T> Items<T> {
    /// Items of a single file.
    pub fn single(all: Vec<T>) -> Self {
        let files = vec![(all.len(), None)];
        Self { all, files }
    }

    /// Holds out the items of these ascending indices and returns them.
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

    /// The order in which training meets the items.
    ///
    /// # Errors
    /// If there are none, or weights are given and a file has none left.
    pub fn walk(&self, seed: u64) -> Result<Walk> {
        if self.all.is_empty() {
            bail!("no record is left to train on");
        }
        let weights: Option<Vec<(usize, f64)>> =
            self.files.iter().map(|&(n, w)| Some((n, w?))).collect();
        match weights {
            Some(files) if files.len() > 1 => {
                let starts = files
                    .iter()
                    .scan(0, |at, (n, _)| Some(std::mem::replace(at, *at + n)))
                    .collect();
                Ok(Walk::Mixture(Mixture::new(&files, seed)?, starts))
            }
            _ => Ok(Walk::Order(Order::new(
                self.all.len(),
                seed,
                Purpose::Shuffle,
            )?)),
        }
    }
}

/// Place in training → index of the item.
pub enum Walk {
    /// All items, shuffled anew each epoch.
    Order(Order),
    /// Files drawn from by weight; the index of each file's first item.
    Mixture(Mixture, Vec<usize>),
}

impl Walk {
    /// The item at `position`.
    pub fn index(&self, position: u64) -> usize {
        match self {
            Self::Order(order) => order.index(position),
            Self::Mixture(mixture, starts) => {
                let (file, index) = mixture.at(position);
                starts[file] + index
            }
        }
    }

    /// The items of optimizer step `step` (from 1) of `batch` items each.
    pub fn step(&self, step: u64, batch: usize) -> Vec<usize> {
        let start = (step - 1) * batch as u64;
        (start..start + batch as u64)
            .map(|position| self.index(position))
            .collect()
    }
}
