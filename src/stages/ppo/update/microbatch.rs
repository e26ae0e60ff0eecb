//! A minibatch cut into microbatches of bounded size.

use anyhow::Result;

use crate::data::packing::cut;
use crate::rlhf::{LossAggregation, RaggedRows, Totals};
use crate::roles::{Experience, PackedSequences};

/// Sequences of one forward pass.
pub struct Microbatch<'a> {
    experience: &'a Experience,
    /// Indices of the sequences in the experience.
    sequences: Vec<usize>,
    /// Start of each sequence among the microbatch's tokens.
    offsets: Vec<usize>,
    /// Sizes of the whole minibatch.
    totals: Totals,
    /// The sequences' tokens, end to end.
    pub packed: PackedSequences,
}

/// Cuts the minibatch of the sequences `indices` into microbatches of at most `limit` tokens; a
/// response has at most `longest`.
///
/// # Errors
/// If a sequence generated nothing.
pub fn microbatches<'a>(
    experience: &'a Experience,
    indices: &[usize],
    limit: usize,
    longest: usize,
) -> Result<Vec<Microbatch<'a>>> {
    let totals = Totals {
        tokens: indices.iter().map(|&i| experience.tokens_of(i).len()).sum(),
        sequences: indices.len(),
        longest,
    };
    let size = |i: usize| experience.sequences()[i].ids.len();
    let parts = cut(indices.to_vec(), size, limit).into_iter();
    parts
        .map(|part| Microbatch::new(experience, part, totals))
        .collect()
}

impl<'a> Microbatch<'a> {
    fn new(experience: &'a Experience, sequences: Vec<usize>, totals: Totals) -> Result<Self> {
        let mut offsets = vec![0];
        offsets.extend(sequences.iter().scan(0, |at, &i| {
            *at += experience.tokens_of(i).len();
            Some(*at)
        }));
        RaggedRows::new(&offsets)?;
        let packed = sequences.iter().map(|&i| &experience.sequences()[i]);
        Ok(Self {
            packed: PackedSequences::new(packed),
            experience,
            sequences,
            offsets,
            totals,
        })
    }

    /// The experience that the sequences belong to.
    pub fn experience(&self) -> &'a Experience {
        self.experience
    }

    /// Weight of each token in the minibatch's mean: `[n]`.
    ///
    /// # Errors
    /// If a total of the minibatch is zero.
    pub fn weights(&self, aggregation: LossAggregation) -> Result<Vec<f64>> {
        Ok(aggregation.weights(RaggedRows::new(&self.offsets)?, self.totals)?)
    }

    /// The elements of a per-token quantity of the experience that belong to this microbatch:
    /// `[n]`.
    pub fn select<T: Copy>(&self, all: &[T]) -> Vec<T> {
        let tokens = |&i: &usize| all[self.experience.tokens_of(i)].iter().copied();
        self.sequences.iter().flat_map(tokens).collect()
    }
}
