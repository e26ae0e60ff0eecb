//! The examples of each step: an order over the records, cut into batches epoch by epoch.
//!
//! The files of a mixture are sampled at different rates, so an epoch of a mixture is defined as as
//! many draws as the files have records in total. A file that is sampled more often than it has
//! records starts over within the epoch.

use crate::random::Purpose;

use crate::config::{Training, TrainingLength};
use crate::data;
use crate::data::batches::{Batches, Remainder};
use crate::data::loader::{Mixture, Order};

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

/// Optimizer steps of a stage with these batches.
pub fn steps(training: &Training, batches: &Batches) -> u64 {
    match training.length() {
        TrainingLength::Steps(steps) => steps as u64,
        TrainingLength::Epochs(epochs) => batches.steps(epochs),
    }
}

/// The indices of the examples that each step reads.
pub struct BatchOrder {
    draws: Draws,
    batches: Batches,
}

/// Position in training → index of the example.
enum Draws {
    /// All examples, shuffled again in each epoch.
    Shuffled(Order),
    /// Files sampled by weight, and the index of each file's first example.
    Mixed(Mixture, Vec<usize>),
}

impl BatchOrder {
    /// The order of the examples of concatenated files: `files` holds the number of examples and
    /// the weight of each file.
    ///
    /// # Errors
    /// If there are no examples, a file with a weight is empty, or `dataloader_drop_last` leaves no
    /// batch.
    pub fn new(
        files: &[(usize, Option<f64>)],
        training: &Training,
        seed: u64,
    ) -> data::Result<Self> {
        let count = files.iter().map(|(count, _)| count).sum();
        Ok(Self {
            draws: Draws::new(files, count, seed)?,
            batches: batches(training, count)?,
        })
    }

    /// The examples of optimizer step `step` (from 1).
    pub fn step(&self, step: u64) -> Vec<usize> {
        let places = self.batches.places(step);
        places.map(|place| self.draws.index(place)).collect()
    }

    /// Passes over the data after `step` steps.
    pub fn epochs(&self, step: u64) -> f64 {
        self.batches.epochs(step)
    }

    /// Optimizer steps of the stage.
    pub fn steps(&self, training: &Training) -> u64 {
        steps(training, &self.batches)
    }
}

impl Draws {
    fn new(files: &[(usize, Option<f64>)], count: usize, seed: u64) -> data::Result<Self> {
        let weights: Option<Vec<(usize, f64)>> =
            files.iter().map(|&(count, w)| Some((count, w?))).collect();
        match weights {
            Some(files) if files.len() > 1 => {
                let starts = files
                    .iter()
                    .scan(0, |at, (n, _)| Some(std::mem::replace(at, *at + n)))
                    .collect();
                Ok(Self::Mixed(Mixture::new(&files, seed)?, starts))
            }
            _ => Ok(Self::Shuffled(Order::new(count, seed, Purpose::Shuffle)?)),
        }
    }

    fn index(&self, place: u64) -> usize {
        match self {
            Self::Shuffled(order) => order.index(place),
            Self::Mixed(mixture, starts) => {
                let (file, index) = mixture.at(place);
                starts[file] + index
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(batch_size: usize) -> Training {
        Training {
            batch_size,
            ..Training::default()
        }
    }

    #[test]
    fn an_epoch_of_a_mixture_is_as_many_draws_as_it_has_records() {
        let (training, files) = (training(4), [(6, Some(3.0)), (4, Some(1.0))]);
        let order = BatchOrder::new(&files, &training, 1).unwrap();
        assert_eq!((order.steps(&training), order.epochs(3)), (3, 1.0));
        let sizes = [1, 2, 3, 4].map(|step| order.step(step).len());
        assert_eq!(sizes, [4, 4, 2, 4]);
        // Whatever the batches, the draws are those of the mixture in its own order.
        let Draws::Mixed(mixture, starts) = &order.draws else {
            panic!("a mixture")
        };
        let drawn: Vec<usize> = (1..=6).flat_map(|step| order.step(step)).collect();
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
        let order = |training: &Training| BatchOrder::new(&[(6, None), (3, None)], training, 1);
        let short = order(&training).unwrap();
        assert_eq!((short.steps(&training), short.step(3).len()), (3, 1));
        training.dataloader_drop_last = true;
        let dropped = order(&training).unwrap();
        assert_eq!((dropped.steps(&training), dropped.epochs(2)), (2, 1.0));
        assert_eq!(dropped.step(1), short.step(1));
        assert_eq!(dropped.step(3), short.step(4), "the next epoch is the same");
        training.batch_size = 10;
        let refused = order(&training).err().expect("no batch").to_string();
        assert!(refused.contains("9 records"), "{refused}");
    }

    #[test]
    fn a_single_file_is_read_in_the_order_without_weights() {
        let order = |weight| {
            let order = BatchOrder::new(&[(9, weight)], &training(4), 1).unwrap();
            (1..=6)
                .flat_map(|step| order.step(step))
                .collect::<Vec<_>>()
        };
        assert_eq!(order(Some(2.0)), order(None));
    }
}
