//! The one value that goes from rollout to update: sequences with what was generated in them, and what the roles said of it.
//!
//! Per-token quantities stand end to end over all sequences, generated tokens only ([`Rows`] marks the sequences). Shapes are
//! checked once, when the value is made.

use std::ops::Range;
use std::sync::Arc;

use super::TokenScores;
use crate::model::boundary::States;
use crate::rlhf::{RlhfError, Rows};

/// A prompt with its continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Names the prompt among all that training meets.
    pub key: u64,
    /// Which of the prompt's samples it is.
    pub sample: usize,
    /// All tokens, given and generated.
    pub ids: Vec<u32>,
    /// The generated tokens: ascending ranges in `ids`. One for a single answer; a dialogue has several.
    pub generated: Vec<Range<usize>>,
    /// Log-probability of each generated token under the distribution that it was drawn from.
    pub log_probs: Vec<f32>,
    /// Log-probability of each generated token over the whole vocabulary; empty where sampling cut no distribution, for then
    /// `log_probs` are these.
    pub whole_log_probs: Vec<f32>,
    /// Entropy of that distribution, in nats; empty where generation was not asked for it.
    pub entropies: Vec<f32>,
    /// The ids that sampling kept for each generated token, where it cut the distribution.
    pub kept: Vec<Option<Arc<[u32]>>>,
    /// Whether it ended by a stop, not by the limit.
    pub finished: bool,
    /// What generation computed of its tokens below the layers that any role trains, where the roles share those.
    pub states: Option<States>,
}

/// A batch that does not fit together.
#[derive(Debug, thiserror::Error)]
pub enum ExperienceError {
    /// A sequence's parts have different sizes.
    #[error(
        "sequence {index} has {ids} tokens, {generated} generated ones, {log_probs} log-probs, {whole_log_probs} of the whole vocabulary, \
         {entropies} entropies and {kept} kept sets"
    )]
    Sequence {
        /// Which one.
        index: usize,
        /// Tokens in all.
        ids: usize,
        /// Generated tokens.
        generated: usize,
        /// Log-probs.
        log_probs: usize,
        /// Log-probs over the whole vocabulary.
        whole_log_probs: usize,
        /// Entropies.
        entropies: usize,
        /// Kept sets.
        kept: usize,
    },
    /// A per-token quantity has the wrong length, or a sequence generated nothing.
    #[error(transparent)]
    Rows(#[from] RlhfError),
}

impl Sequence {
    /// Positions of the generated tokens.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.generated.iter().cloned().flatten()
    }

    /// The generated tokens.
    pub fn response(&self) -> Vec<u32> {
        self.positions().map(|p| self.ids[p]).collect()
    }

    /// Log-probability of each generated token over the whole vocabulary.
    pub fn whole_log_probs(&self) -> &[f32] {
        match self.whole_log_probs.is_empty() {
            true => &self.log_probs,
            false => &self.whole_log_probs,
        }
    }

    fn fits(&self) -> bool {
        // A generated token is predicted by the one before it, so none may stand first.
        let inside = self
            .generated
            .iter()
            .all(|r| r.start > 0 && r.start < r.end && r.end <= self.ids.len());
        let ascending = self.generated.windows(2).all(|w| w[0].end <= w[1].start);
        let count: usize = self.generated.iter().map(Range::len).sum();
        let cut = self.kept.iter().any(Option::is_some);
        let whole = if cut { count } else { 0 };
        inside
            && ascending
            && count > 0
            && count == self.log_probs.len()
            && count == self.kept.len()
            && whole == self.whole_log_probs.len()
            && (self.entropies.is_empty() || count == self.entropies.len())
    }
}

/// Sequences of one iteration.
#[derive(Clone, Debug)]
pub struct Experience {
    sequences: Vec<Sequence>,
    offsets: Vec<usize>,
}

impl Experience {
    /// Takes sequences in their order.
    ///
    /// # Errors
    /// If a sequence's parts do not fit or it generated nothing.
    pub fn new(sequences: Vec<Sequence>) -> Result<Self, ExperienceError> {
        let mut offsets = vec![0];
        for (index, s) in sequences.iter().enumerate() {
            if !s.fits() {
                let generated = s.generated.iter().map(Range::len).sum();
                let (ids, log_probs, kept) = (s.ids.len(), s.log_probs.len(), s.kept.len());
                return Err(ExperienceError::Sequence {
                    index,
                    ids,
                    generated,
                    log_probs,
                    whole_log_probs: s.whole_log_probs.len(),
                    entropies: s.entropies.len(),
                    kept,
                });
            }
            offsets.push(offsets[index] + s.log_probs.len());
        }
        Rows::new(&offsets)?;
        Ok(Self { sequences, offsets })
    }

    /// The sequences.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// Where each sequence's generated tokens lie in the per-token quantities.
    ///
    /// # Errors
    /// Never for a value made by [`Self::new`].
    pub fn rows(&self) -> Result<Rows<'_>, RlhfError> {
        Rows::new(&self.offsets)
    }

    /// The generated tokens of sequence `index` among all.
    pub fn tokens_of(&self, index: usize) -> Range<usize> {
        self.offsets[index]..self.offsets[index + 1]
    }

    /// What the generator recorded of each token.
    pub fn recorded(&self) -> TokenScores {
        let all = |of: fn(&Sequence) -> &[f32]| {
            let parts: Vec<&[f32]> = self.sequences.iter().map(of).collect();
            parts.concat()
        };
        TokenScores {
            log_probs: all(|s| &s.log_probs),
            whole_log_probs: all(Sequence::whole_log_probs),
            entropy: all(|s| &s.entropies),
        }
    }

    /// Generated tokens of all sequences.
    pub fn token_count(&self) -> usize {
        self.offsets[self.sequences.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(generated: &[(usize, usize)], count: usize) -> Sequence {
        Sequence {
            key: 0,
            sample: 0,
            ids: vec![1; 6],
            generated: generated.iter().map(|&(a, b)| a..b).collect(),
            log_probs: vec![0.0; count],
            whole_log_probs: Vec::new(),
            entropies: Vec::new(),
            kept: vec![None; count],
            finished: true,
            states: None,
        }
    }

    #[test]
    fn shapes_are_checked_once() {
        let good =
            Experience::new(vec![sequence(&[(1, 3), (5, 6)], 3), sequence(&[(2, 6)], 4)]).unwrap();
        assert_eq!(good.token_count(), 7);
        assert_eq!(good.tokens_of(1), 3..7);
        for bad in [
            sequence(&[(0, 3)], 3),
            sequence(&[(2, 7)], 5),
            sequence(&[(3, 5), (4, 6)], 4),
            sequence(&[(1, 3)], 3),
            sequence(&[], 0),
        ] {
            assert!(Experience::new(vec![bad]).is_err());
        }
    }

    #[test]
    fn a_cut_sequence_has_log_probs_over_the_whole_vocabulary() {
        let cut = Sequence {
            kept: vec![Some([1].into()), None],
            log_probs: vec![0.0, -1.0],
            whole_log_probs: vec![-2.0, -1.0],
            ..sequence(&[(1, 3)], 2)
        };
        let without = Sequence {
            whole_log_probs: Vec::new(),
            ..cut.clone()
        };
        assert!(Experience::new(vec![without]).is_err());
        let uncut = Sequence {
            log_probs: vec![-3.0, -4.0],
            ..sequence(&[(1, 3)], 2)
        };
        let recorded = Experience::new(vec![cut, uncut]).unwrap().recorded();
        assert_eq!(recorded.log_probs, [0.0, -1.0, -3.0, -4.0]);
        assert_eq!(recorded.whole_log_probs, [-2.0, -1.0, -3.0, -4.0]);
    }
}
