//! The order of records, as a function of the seed and the position.
//!
//! The positions that a step reads follow from the step ([`super::batches`]). [`Order`] shuffles
//! each epoch by a keyed permutation; [`Mixture`] chooses among datasets so that every prefix has
//! their proportions (Tijdeman 1980, "The chairman assignment problem").

use std::cell::RefCell;

use kernels::random::Key;

use crate::random::Purpose;

use super::error::{DataError, Result};

/// An endless shuffled walk over a dataset: each epoch visits every record once, in its own order.
#[derive(Debug)]
pub struct Order {
    len: usize,
    key: Key,
    /// The epoch of the last call and its permutation: an epoch costs one permutation.
    cached: RefCell<Option<(u64, Vec<usize>)>>,
}

impl Order {
    /// The walk over `len` records for a seed and a purpose.
    ///
    /// # Errors
    /// `len` 0.
    pub fn new(len: usize, seed: u64, purpose: Purpose) -> Result<Self> {
        Self::with_key(len, Key::new(seed, purpose))
    }

    fn with_key(len: usize, key: Key) -> Result<Self> {
        if len == 0 {
            return Err(DataError::Invalid(
                "the dataset is empty; expected at least one record".into(),
            ));
        }
        Ok(Order {
            len,
            key,
            cached: RefCell::new(None),
        })
    }

    /// The record at a position.
    pub fn index(&self, position: u64) -> usize {
        let epoch = self.epoch(position);
        let place = (position % self.len as u64) as usize;
        let mut cached = self.cached.borrow_mut();
        match &*cached {
            Some((known, permutation)) if *known == epoch => permutation[place],
            _ => {
                let permutation = self.key.permutation(epoch, self.len);
                let index = permutation[place];
                *cached = Some((epoch, permutation));
                index
            }
        }
    }

    /// The epoch of a position, counted from 0.
    pub fn epoch(&self, position: u64) -> u64 {
        position / self.len as u64
    }

    /// Number of records in the dataset.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false: an order has at least one record.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Several datasets in fixed proportions, each walked in its own shuffled epochs.
///
/// For every n, the number of times that dataset i was chosen in the first n positions differs by
/// less than one from n·wᵢ (weights normalised to 1).
#[derive(Debug)]
pub struct Mixture {
    orders: Vec<Order>,
    weights: Vec<f64>,
    /// The choices up to a position; the next position costs O(datasets), an earlier one replays
    /// from 0.
    state: RefCell<Choices>,
}

/// Number of times that each dataset was chosen in the first `position` positions.
#[derive(Debug, Clone)]
struct Choices {
    position: u64,
    counts: Vec<u64>,
}

impl Mixture {
    /// A mixture of datasets given by (length, weight).
    ///
    /// # Errors
    /// If there is no dataset, one is empty, or a weight is not a positive number.
    pub fn new(datasets: &[(usize, f64)], seed: u64) -> Result<Self> {
        if datasets.is_empty() {
            return Err(DataError::Invalid(
                "a mixture needs at least one dataset".into(),
            ));
        }
        if let Some(i) = datasets
            .iter()
            .position(|(_, w)| !(w.is_finite() && *w > 0.0))
        {
            let message = format!(
                "dataset {i} has weight {}; expected a number above 0",
                datasets[i].1
            );
            return Err(DataError::Invalid(message));
        }
        let key = Key::new(seed, Purpose::Mixture);
        let order =
            |(i, &(len, _)): (usize, &(usize, f64))| Order::with_key(len, key.child(i as u64, 0));
        let total: f64 = datasets.iter().map(|(_, weight)| weight).sum();
        Ok(Mixture {
            orders: datasets
                .iter()
                .enumerate()
                .map(order)
                .collect::<Result<_>>()?,
            weights: datasets.iter().map(|(_, weight)| weight / total).collect(),
            state: RefCell::new(Choices {
                position: 0,
                counts: vec![0; datasets.len()],
            }),
        })
    }

    /// The dataset and the record in it at a position.
    ///
    /// The first call after a resume replays the earlier choices, which takes about 10 ns each for
    /// a few datasets.
    pub fn at(&self, position: u64) -> (usize, usize) {
        let mut state = self.state.borrow_mut();
        if position < state.position {
            *state = Choices {
                position: 0,
                counts: vec![0; self.orders.len()],
            };
        }
        while state.position < position {
            self.choose(&mut state);
        }
        let dataset = self.choose(&mut state);
        (
            dataset,
            self.orders[dataset].index(state.counts[dataset] - 1),
        )
    }

    /// One step of Tijdeman's rule: among the datasets that would not exceed their share, choose
    /// the one that would fall behind first.
    fn choose(&self, state: &mut Choices) -> usize {
        let slack = match self.weights.len() {
            1 => 0.0,
            k => 1.0 / (2 * k - 2) as f64,
        };
        let mut chosen = (f64::INFINITY, 0);
        for (i, (&weight, &count)) in self.weights.iter().zip(&state.counts).enumerate() {
            let deficit = weight * state.position as f64 - count as f64;
            let deadline = (1.0 - slack - deficit) / weight;
            if deficit + weight >= slack && deadline < chosen.0 {
                chosen = (deadline, i);
            }
        }
        state.counts[chosen.1] += 1;
        state.position += 1;
        chosen.1
    }
}

/// Divides `0..len` into (training, held out), each in ascending order; `fraction` is held out,
/// rounded, and at least one record if it is above 0.
///
/// # Errors
/// If the fraction is outside [0, 1), or leaves no record to train on.
pub fn split(len: usize, fraction: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    let complaint = |what: &str| {
        Err(DataError::Invalid(format!(
            "cannot hold out a fraction {fraction} of {len} records: {what}"
        )))
    };
    if !(0.0..1.0).contains(&fraction) {
        return complaint("expected a fraction from 0 to below 1");
    }
    let held = match (fraction * len as f64).round() as usize {
        0 if fraction > 0.0 => 1,
        held => held,
    };
    if held >= len {
        return complaint("no record would be left to train on");
    }
    let mut held_out = Key::new(seed, Purpose::Split).permutation(0, len);
    let mut train = held_out.split_off(held);
    train.sort_unstable();
    held_out.sort_unstable();
    Ok((train, held_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_visit_every_record_once_in_new_orders() {
        let order = Order::new(50, 1, Purpose::Shuffle).unwrap();
        let epoch = |e: u64| {
            (e * 50..(e + 1) * 50)
                .map(|p| order.index(p))
                .collect::<Vec<_>>()
        };
        let (first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        for mut walk in [first.clone(), second] {
            walk.sort_unstable();
            assert_eq!(walk, (0..50).collect::<Vec<_>>());
        }
        assert_eq!(first, epoch(0), "going back gives the same order");
        let other = Order::new(50, 2, Purpose::Shuffle).unwrap();
        assert!((0..50).any(|p| other.index(p) != first[p as usize]));
        assert!(Order::new(0, 1, Purpose::Shuffle).is_err());
    }

    #[test]
    fn every_prefix_of_a_mixture_keeps_the_weights() {
        for weights in [
            vec![1.0],
            vec![0.7, 0.3],
            vec![5.0, 1.0, 1.0],
            vec![0.9, 0.02, 0.02, 0.02, 0.04],
        ] {
            let total: f64 = weights.iter().sum();
            let datasets: Vec<_> = weights.iter().map(|&w| (10, w)).collect();
            let mixture = Mixture::new(&datasets, 3).unwrap();
            let mut counts = vec![0.0; weights.len()];
            for n in 1..=1000 {
                counts[mixture.at(n - 1).0] += 1.0;
                for (count, weight) in counts.iter().zip(&weights) {
                    assert!(
                        (count - weight / total * n as f64).abs() <= 1.0,
                        "{weights:?} at {n}: {counts:?}"
                    );
                }
            }
        }
    }

    /// Tijdeman's theorem 2: no count is ever further than 1 − 1/(2k − 2) from its share.
    #[test]
    fn a_mixture_of_k_files_stays_within_the_bound_of_the_chairman_problem() {
        for weights in [
            vec![0.7, 0.3],
            vec![5.0, 1.0, 1.0],
            vec![0.9, 0.02, 0.02, 0.02, 0.04],
            vec![1000.0, 100.0, 5.0, 100.0],
        ] {
            let total: f64 = weights.iter().sum();
            let bound = 1.0 - 1.0 / (2 * weights.len() - 2) as f64;
            let datasets: Vec<_> = weights.iter().map(|&w| (10, w)).collect();
            let mixture = Mixture::new(&datasets, 3).unwrap();
            let mut counts = vec![0.0; weights.len()];
            for n in 1..=1000 {
                counts[mixture.at(n - 1).0] += 1.0;
                for (count, weight) in counts.iter().zip(&weights) {
                    let gap = (count - weight / total * n as f64).abs();
                    assert!(gap <= bound + 1e-9, "{weights:?} at {n}: {counts:?}");
                }
            }
        }
    }

    /// The n-th draw from a file is the n-th record in the file's order, and each file has an order
    /// of its own.
    #[test]
    fn a_mixture_walks_each_file_in_an_order_of_its_own() {
        let mixture = Mixture::new(&[(50, 1.0), (50, 1.0)], 9).unwrap();
        let key = Key::new(9, Purpose::Mixture);
        let orders = [0, 1].map(|file| Order::with_key(50, key.child(file, 0)).unwrap());
        let mut drawn = [0, 0];
        for position in 0..200 {
            let (file, index) = mixture.at(position);
            assert_eq!(index, orders[file].index(drawn[file]), "{position}");
            drawn[file] += 1;
        }
        assert_eq!(drawn, [100, 100]);
        assert!((0..50).any(|p| orders[0].index(p) != orders[1].index(p)));
    }

    /// By definition: the first of a permutation of its own purpose, both parts in ascending order.
    #[test]
    fn a_split_holds_out_the_first_records_of_its_own_permutation() {
        let (train, held) = split(101, 0.1, 4).unwrap();
        let mut first = Key::new(4, Purpose::Split).permutation(0, 101);
        first.truncate(10);
        first.sort_unstable();
        assert_eq!(held, first);
        assert!(train.is_sorted() && held.is_sorted());
    }

    #[test]
    fn a_mixture_is_a_function_of_the_position() {
        let new = || Mixture::new(&[(7, 2.0), (5, 1.0)], 9).unwrap();
        let walked: Vec<_> = {
            let m = new();
            (0..60).map(|p| m.at(p)).collect()
        };
        let m = new();
        for p in [59, 3, 3, 30, 0] {
            assert_eq!(m.at(p), walked[p as usize]);
        }
        let mut seen: Vec<_> = walked
            .iter()
            .filter(|(d, _)| *d == 1)
            .take(5)
            .map(|(_, i)| *i)
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4], "each dataset in its own epochs");
        assert!(
            Mixture::new(&[(7, 0.0)], 9).is_err() && Mixture::new(&[(7, f64::NAN)], 9).is_err()
        );
        assert!(Mixture::new(&[], 9).is_err() && Mixture::new(&[(0, 1.0)], 9).is_err());
    }

    #[test]
    fn splits_are_disjoint_and_complete() {
        let (train, held) = split(101, 0.1, 4).unwrap();
        assert_eq!((train.len(), held.len()), (91, 10));
        let mut all = [train.clone(), held.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..101).collect::<Vec<_>>());
        assert_ne!(split(101, 0.1, 5).unwrap().1, held);
        assert_eq!(split(3, 0.01, 4).unwrap().1.len(), 1);
        assert_eq!(split(3, 0.0, 4).unwrap().1.len(), 0);
        assert!(
            split(1, 0.5, 4).is_err()
                && split(3, 1.0, 4).is_err()
                && split(3, f64::NAN, 4).is_err()
        );
    }
}
