//! Which record comes at which place: one shuffled dataset, or a weighted mixture of several.

use anyhow::{Result, bail};
use rollout::random::Purpose;

use crate::config::Data;
use crate::data;
use crate::data::example::{Encoded, TooLongCounts};
use crate::data::loader::{Mixture, Order};
use crate::data::records::{Record, read};

/// Records of all files, and the sizes and weights of the files where they are mixed.
pub struct Records {
    /// The records, file after file.
    pub all: Vec<Record>,
    files: Vec<(usize, Option<f64>)>,
}

impl Records {
    /// Reads the files of a `data` key.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn read(data: &Data) -> Result<Self> {
        let mut records = Self {
            all: Vec::new(),
            files: Vec::new(),
        };
        for source in &data.sources {
            let file = read(&source.path)?;
            records.files.push((file.len(), source.weight));
            records.all.extend(file);
        }
        Ok(records)
    }

    /// Makes items of each file's records, and counts those that were too long: a file may lose
    /// some on the way.
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn map<T>(
        &self,
        encode: impl Fn(&[Record]) -> data::Result<Encoded<T>>,
    ) -> data::Result<(Items<T>, TooLongCounts)> {
        let (mut all, mut files, mut start) = (Vec::new(), Vec::new(), 0);
        let mut too_long = TooLongCounts::default();
        for &(count, weight) in &self.files {
            let file = encode(&self.all[start..start + count])?;
            files.push((file.items.len(), weight));
            all.extend(file.items);
            too_long += file.too_long;
            start += count;
        }
        Ok((Items { all, files }, too_long))
    }
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
