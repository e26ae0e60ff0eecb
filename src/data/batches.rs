//! Batches of an epoch: the positions in an endless walk over the records that each step reads.
//!
//! An epoch is one pass over the records. A batch never crosses its end, so no record comes twice
//! in a batch, nor twice in an epoch. The positions are a function of the step.

use std::ops::Range;

use super::error::{DataError, Result};

/// Policy for the records of an epoch that do not fill a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remainder {
    /// The remaining records are the epoch's last batch, a short one.
    ShortBatch,
    /// The remaining records are left out of this epoch; the next epoch shuffles again.
    Dropped,
}

/// The batches of an epoch, the same number in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Number of positions in an epoch.
    places: u64,
    /// Number of positions in a whole batch.
    size: u64,
    remainder: Remainder,
}

impl Batches {
    /// Batches of `size` of `records` records.
    ///
    /// # Errors
    /// If `size` is 0, there are no records, or no batch is left after the remainder is dropped.
    pub fn new(records: usize, size: usize, remainder: Remainder) -> Result<Self> {
        if records == 0 || size == 0 {
            let message = format!("{records} records make no batch of {size}");
            return Err(DataError::Invalid(message));
        }
        if remainder == Remainder::Dropped && size > records {
            return Err(DataError::Invalid(format!(
                "dataloader_drop_last leaves nothing to train on: {records} records do not fill \
                 one batch of batch_size = {size}; lower batch_size to {records} or less, or set \
                 dataloader_drop_last to false"
            )));
        }
        Ok(Self {
            places: records as u64,
            size: size as u64,
            remainder,
        })
    }

    /// Batches of exactly `size` records, as an iteration of PPO needs them. Records that do not
    /// fill a batch are left out of the epoch. If there are fewer records than a batch holds, a
    /// batch repeats them: the numbers of times that two records occur in it differ by at most one.
    ///
    /// # Errors
    /// If `size` is 0 or there are no records.
    pub fn full(records: usize, size: usize) -> Result<Self> {
        let passes = size.div_ceil(records.max(1)).max(1);
        Self::new(records * passes, size, Remainder::Dropped)
    }

    /// Number of steps of an epoch.
    pub fn per_epoch(&self) -> u64 {
        match self.remainder {
            Remainder::ShortBatch => self.places.div_ceil(self.size),
            Remainder::Dropped => self.places / self.size,
        }
    }

    /// Number of records of an epoch that are in none of its batches.
    pub fn left_out(&self) -> u64 {
        match self.remainder {
            Remainder::ShortBatch => 0,
            Remainder::Dropped => self.places % self.size,
        }
    }

    /// The positions that `step`, counted from 1, reads.
    pub fn places(&self, step: u64) -> Range<u64> {
        let (epoch, batch) = ((step - 1) / self.per_epoch(), (step - 1) % self.per_epoch());
        let start = batch * self.size;
        let end = (start + self.size).min(self.places);
        epoch * self.places + start..epoch * self.places + end
    }

    /// The first position from `place` on at which a whole batch fits into the rest of the epoch.
    pub fn whole_from(&self, place: u64) -> u64 {
        match self.places - place % self.places < self.size {
            true => place.next_multiple_of(self.places),
            false => place,
        }
    }

    /// Number of steps of `epochs` epochs, rounded up as in transformers, and at least 1.
    pub fn steps(&self, epochs: f64) -> u64 {
        ((epochs * self.per_epoch() as f64).ceil() as u64).max(1)
    }

    /// Number of epochs after `step` steps, as in transformers: the steps divided by those of an
    /// epoch.
    pub fn epochs(&self, step: u64) -> f64 {
        step as f64 / self.per_epoch() as f64
    }
}

#[cfg(test)]
mod tests {
    use crate::random::Purpose;

    use super::*;
    use crate::data::loader::Order;

    fn short(records: usize, size: usize) -> Batches {
        Batches::new(records, size, Remainder::ShortBatch).unwrap()
    }

    fn dropped(records: usize, size: usize) -> Batches {
        Batches::new(records, size, Remainder::Dropped).unwrap()
    }

    #[test]
    fn an_epoch_ends_with_a_short_batch() {
        let batches = short(33, 32);
        assert_eq!(batches.per_epoch(), 2);
        let places = [1, 2, 3, 4].map(|step| batches.places(step));
        assert_eq!(places, [0..32, 32..33, 33..65, 65..66]);
        assert_eq!([1, 2, 4].map(|step| batches.epochs(step)), [0.5, 1.0, 2.0]);
        // Fewer records than a batch holds are one short batch.
        assert_eq!(short(13, 32).places(2), 13..26);
        assert_eq!(short(13, 32).epochs(1), 1.0);
    }

    #[test]
    fn a_remainder_that_is_dropped_is_in_no_batch() {
        let batches = dropped(33, 32);
        assert_eq!((batches.per_epoch(), batches.left_out()), (1, 1));
        assert_eq!([batches.places(1), batches.places(2)], [0..32, 33..65]);
        assert_eq!(
            (dropped(64, 32).per_epoch(), dropped(64, 32).left_out()),
            (2, 0)
        );
        let refused = Batches::new(31, 32, Remainder::Dropped)
            .unwrap_err()
            .to_string();
        for words in ["dataloader_drop_last", "31 records", "batch_size = 32"] {
            assert!(refused.contains(words), "{refused}");
        }
    }

    /// ceil(epochs · steps of an epoch): transformers' `max_steps` where epochs say how long.
    #[test]
    fn fractions_of_an_epoch_are_rounded_up_to_steps() {
        let steps = |batches: Batches, epochs: f64| batches.steps(epochs);
        assert_eq!(steps(short(33, 32), 1.0), 2);
        assert_eq!(steps(short(33, 32), 1.5), 3);
        assert_eq!(steps(short(33, 32), 0.5), 1);
        assert_eq!(steps(short(33, 32), 0.51), 2);
        assert_eq!(steps(short(33, 32), 3.0), 6);
        assert_eq!(steps(dropped(33, 32), 2.5), 3);
        assert_eq!(steps(short(10, 32), 1e-9), 1);
    }

    #[test]
    fn no_batch_repeats_a_record_and_an_epoch_has_each_once() {
        for (records, size) in [(33, 32), (7, 3), (7, 7), (5, 8), (1, 4), (12, 4)] {
            let (batches, order) = (
                short(records, size),
                Order::new(records, 1, Purpose::Shuffle).unwrap(),
            );
            for epoch in 0..3 {
                let steps = epoch * batches.per_epoch() + 1..=(epoch + 1) * batches.per_epoch();
                let places = steps.flat_map(|step| batches.places(step));
                let mut seen: Vec<usize> = places.map(|place| order.index(place)).collect();
                seen.sort_unstable();
                assert_eq!(
                    seen,
                    (0..records).collect::<Vec<_>>(),
                    "{records} by {size}"
                );
            }
        }
    }

    #[test]
    fn full_batches_repeat_records_only_where_there_are_too_few() {
        for (records, size) in [
            (33, 32),
            (7, 3),
            (7, 7),
            (12, 4),
            (5, 8),
            (1, 4),
            (30, 16),
            (3, 10),
        ] {
            let batches = Batches::full(records, size).unwrap();
            let order = Order::new(records, 1, Purpose::Shuffle).unwrap();
            let mut cursor = 0;
            for step in 1..=10 {
                let places = batches.places(step);
                assert_eq!(
                    batches.whole_from(cursor),
                    places.start,
                    "{records} by {size}"
                );
                cursor = places.end;
                let mut times = vec![0; records];
                places.for_each(|place| times[order.index(place)] += 1);
                assert_eq!(times.iter().sum::<usize>(), size);
                let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
                assert!(most - least <= 1, "{records} by {size}: {times:?}");
            }
        }
    }
}
