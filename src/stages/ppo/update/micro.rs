//! A minibatch cut into passes of bounded size.

use anyhow::Result;

use super::Batch;
use crate::data::packing::cut;
use crate::rlhf::{LossAggregation, Rows, Totals};
use crate::roles::{Experience, Packed};

/// A minibatch's sequences by pass, and what they hold together.
pub struct Cut {
    passes: Vec<Vec<usize>>,
    totals: Totals,
}

/// Sequences that one forward pass takes.
pub struct Micro<'a> {
    batch: &'a Batch<'a>,
    sequences: &'a [usize],
    /// Where each sequence's tokens begin among the pass's.
    offsets: Vec<usize>,
    totals: Totals,
    /// Their tokens, end to end.
    pub packed: Packed,
}

/// Cuts the sequences of `indices` into passes of at most `limit` tokens; a response has at most
/// `longest`.
pub fn cut_minibatch(
    experience: &Experience,
    indices: &[usize],
    limit: usize,
    longest: usize,
) -> Cut {
    let size = |i: usize| experience.sequences()[i].ids.len();
    Cut {
        passes: cut(indices.to_vec(), size, limit),
        totals: Totals {
            tokens: indices.iter().map(|&i| experience.tokens_of(i).len()).sum(),
            sequences: indices.len(),
            longest,
        },
    }
}

impl Cut {
    /// The passes, packed.
    ///
    /// # Errors
    /// If a sequence generated nothing.
    pub fn micros<'a>(&'a self, batch: &'a Batch<'a>) -> Result<Vec<Micro<'a>>> {
        let micro = |pass: &'a Vec<usize>| Micro::new(batch, pass, self.totals);
        self.passes.iter().map(micro).collect()
    }
}

impl<'a> Micro<'a> {
    fn new(batch: &'a Batch<'a>, sequences: &'a [usize], totals: Totals) -> Result<Self> {
        let experience = batch.experience;
        let mut offsets = vec![0];
        offsets.extend(sequences.iter().scan(0, |at, &i| {
            *at += experience.tokens_of(i).len();
            Some(*at)
        }));
        Rows::new(&offsets)?;
        Ok(Self {
            batch,
            sequences,
            offsets,
            totals,
            packed: Packed::new(sequences.iter().map(|&i| &experience.sequences()[i])),
        })
    }

    /// The batch that the sequences are of.
    pub fn batch(&self) -> &'a Batch<'a> {
        self.batch
    }

    /// What each of the pass's tokens counts in the minibatch's mean: `[n]`.
    ///
    /// # Errors
    /// If a total of the minibatch is zero.
    pub fn weights(&self, aggregation: LossAggregation) -> Result<Vec<f64>> {
        Ok(aggregation.weights(Rows::new(&self.offsets)?, self.totals)?)
    }

    /// The entries of the sequences' tokens, in their order: `[n]`.
    pub fn pick<T: Copy>(&self, all: &[T]) -> Vec<T> {
        let tokens = |&i: &usize| all[self.batch.experience.tokens_of(i)].iter().copied();
        self.sequences.iter().flat_map(tokens).collect()
    }
}
