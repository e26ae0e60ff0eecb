//! Which records a step reads: one shuffled dataset, or a weighted mixture of several, cut into batches epoch by epoch.
//!
//! A mixture has no epochs of its own, for its files are drawn from at different rates. An epoch of it is as many draws as it has
//! records in all, cut into batches as any other; a file that is drawn from more often than it has records begins anew within it.

use anyhow::{Context as _, Result, bail};
use rollout::random::Purpose;

use super::misfits::Misfit;
use crate::config::{Data, Length, RecordKeys, Source, Stage, Training};
use crate::data;
use crate::data::batches::{Batches, Remainder};
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
    /// The errors of `encode`.
    pub fn map<T>(
        self,
        key: String,
        encode: impl Fn(&[Record]) -> data::Result<Encoded<T>>,
    ) -> data::Result<(Items<T>, Misfit)> {
        self.map_owned(key, |records| encode(&records))
    }

    /// Items as of [`Self::map`], of records that `encode` may keep.
    ///
    /// # Errors
    /// The errors of `encode`.
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

impl Items<()> {
    /// Places of items that are held elsewhere: how many each file has, and its weight.
    pub fn of_files(files: Vec<(usize, Option<f64>)>) -> Self {
        let count = files.iter().map(|(count, _)| count).sum();
        Self {
            all: vec![(); count],
            files,
        }
    }
}

/// Encoded records, file after file.
pub struct Items<T> {
    /// The items.
    pub all: Vec<T>,
    files: Vec<(usize, Option<f64>)>,
}

impl<T> Items<T> {
    /// The items of each file, and its weight.
    pub fn by_file(&self) -> impl Iterator<Item = (&[T], Option<f64>)> {
        let mut rest = self.all.as_slice();
        self.files.iter().map(move |&(count, weight)| {
            let (file, others) = rest.split_at(count);
            rest = others;
            (file, weight)
        })
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

    /// The order in which training meets the items, and its batches.
    ///
    /// # Errors
    /// If there are none, weights are given and a file has none left, or `dataloader_drop_last` leaves no batch.
    pub fn walk(&self, stage: Stage, training: &Training, seed: u64) -> Result<Walk> {
        if self.all.is_empty() {
            bail!("no record is left to train on");
        }
        Ok(Walk {
            order: self.order(seed)?,
            batches: batches(training, self.all.len()).with_context(|| format!("[{stage}]"))?,
        })
    }

    fn order(&self, seed: u64) -> Result<Draws> {
        let weights: Option<Vec<(usize, f64)>> =
            self.files.iter().map(|&(n, w)| Some((n, w?))).collect();
        match weights {
            Some(files) if files.len() > 1 => {
                let starts = files
                    .iter()
                    .scan(0, |at, (n, _)| Some(std::mem::replace(at, *at + n)))
                    .collect();
                Ok(Draws::Mixture(Mixture::new(&files, seed)?, starts))
            }
            _ => Ok(Draws::Order(Order::new(
                self.all.len(),
                seed,
                Purpose::Shuffle,
            )?)),
        }
    }
}

impl<T> Items<Vec<T>> {
    /// The items of the lists.
    pub fn flatten(self) -> Items<T> {
        let mut lists = self.all.into_iter();
        let (mut all, mut files) = (Vec::new(), Vec::new());
        for (count, weight) in self.files {
            let start = all.len();
            all.extend(lists.by_ref().take(count).flatten());
            files.push((all.len() - start, weight));
        }
        Items { all, files }
    }
}

/// Batches of the records of a supervised stage.
///
/// # Errors
/// If `dataloader_drop_last` leaves no batch.
pub fn batches(training: &Training, records: usize) -> data::Result<Batches> {
    let remainder = match training.dataloader_drop_last {
        true => Remainder::Dropped,
        false => Remainder::ShortBatch,
    };
    Batches::new(records, training.batch_size, remainder)
}

/// Steps of a stage whose epochs are cut so.
pub fn steps(training: &Training, batches: &Batches) -> u64 {
    match training.length() {
        Length::Steps(steps) => steps as u64,
        Length::Epochs(epochs) => batches.steps(epochs),
    }
}

/// The items that each step reads.
pub struct Walk {
    order: Draws,
    batches: Batches,
}

/// Place in training → index of the item.
enum Draws {
    /// All items, shuffled anew each epoch.
    Order(Order),
    /// Files drawn from by weight; the index of each file's first item.
    Mixture(Mixture, Vec<usize>),
}

impl Draws {
    fn index(&self, place: u64) -> usize {
        match self {
            Self::Order(order) => order.index(place),
            Self::Mixture(mixture, starts) => {
                let (file, index) = mixture.at(place);
                starts[file] + index
            }
        }
    }
}

impl Walk {
    /// The items of optimizer step `step` (from 1).
    pub fn step(&self, step: u64) -> Vec<usize> {
        let places = self.batches.places(step);
        places.map(|place| self.order.index(place)).collect()
    }

    /// Passes over the data after `step` steps.
    pub fn epochs(&self, step: u64) -> f64 {
        self.batches.epochs(step)
    }

    /// Steps of the stage.
    pub fn steps(&self, training: &Training) -> u64 {
        steps(training, &self.batches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(files: &[(usize, Option<f64>)]) -> Items<()> {
        Items {
            all: vec![(); files.iter().map(|(count, _)| count).sum()],
            files: files.to_vec(),
        }
    }

    fn training(batch_size: usize) -> Training {
        Training {
            batch_size,
            ..Training::default()
        }
    }

    #[test]
    fn an_epoch_of_a_mixture_is_as_many_draws_as_it_has_records() {
        let (training, files) = (training(4), [(6, Some(3.0)), (4, Some(1.0))]);
        let walk = items(&files).walk(Stage::Sft, &training, 1).unwrap();
        assert_eq!((walk.steps(&training), walk.epochs(3)), (3, 1.0));
        let sizes = [1, 2, 3, 4].map(|step| walk.step(step).len());
        assert_eq!(sizes, [4, 4, 2, 4]);
        // Whatever the batches, the draws are those of the mixture in its own order.
        let Draws::Mixture(mixture, starts) = &walk.order else {
            panic!("a mixture")
        };
        let drawn: Vec<usize> = (1..=6).flat_map(|step| walk.step(step)).collect();
        let expected = (0..20)
            .map(|place| mixture.at(place))
            .map(|(file, i)| starts[file] + i);
        assert_eq!(drawn, expected.collect::<Vec<_>>());
        let first = drawn.iter().filter(|&&item| item < 6).count();
        assert_eq!(first, 15, "three draws in four");
    }

    #[test]
    fn the_last_batch_is_short_or_dropped_as_configured() {
        let mut training = training(4);
        let walk =
            |training: &Training| items(&[(6, None), (3, None)]).walk(Stage::Dpo, training, 1);
        let short = walk(&training).unwrap();
        assert_eq!((short.steps(&training), short.step(3).len()), (3, 1));
        training.dataloader_drop_last = true;
        let dropped = walk(&training).unwrap();
        assert_eq!((dropped.steps(&training), dropped.epochs(2)), (2, 1.0));
        assert_eq!(dropped.step(1), short.step(1));
        assert_eq!(dropped.step(3), short.step(4), "the next epoch is the same");
        training.batch_size = 10;
        let refused = walk(&training).err().expect("no batch");
        let refused = format!("{refused:#}");
        assert!(
            refused.contains("[dpo]") && refused.contains("9 records"),
            "{refused}"
        );
    }
}
