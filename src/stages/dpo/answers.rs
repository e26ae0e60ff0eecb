//! The answers of some pairs laid end to end, each behind its prompt, and the log-probs of their tokens.

use anyhow::Result;
use candle_core::Tensor;

use crate::data::example::Pair;
use crate::model::{Decoder, Gradient};
use crate::ops::attention::Segments;
use crate::ops::head::Target;
use crate::rlhf::Rows;

/// Chosen and rejected of each pair, one after the other, without each one's last token, which predicts nothing.
pub struct Answers {
    ids: Vec<u32>,
    segments: Segments,
    targets: Vec<Target>,
    offsets: Vec<usize>, // 2 × pairs + 1
}

impl Answers {
    /// Packs the answers of `pairs` in order.
    pub fn new<'p>(pairs: impl Iterator<Item = &'p Pair>) -> Self {
        let (mut ids, mut lengths, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        let mut offsets = vec![0];
        for pair in pairs {
            for sequence in pair.sequences() {
                let row = ids.len();
                let counted = first_predicted(pair)..sequence.len();
                targets.extend(counted.map(|p| Target::whole(row + p - 1, sequence[p])));
                offsets.push(targets.len());
                lengths.push(sequence.len() - 1);
                ids.extend(&sequence[..sequence.len() - 1]);
            }
        }
        Self {
            ids,
            segments: Segments::from_lengths(lengths),
            targets,
            offsets,
        }
    }

    /// Log-probs of the answers' tokens, EOS included, at temperature 1: `[n]`.
    ///
    /// # Errors
    /// If the computation fails.
    pub fn log_probs(&self, model: &Decoder, gradient: Gradient) -> Result<Tensor> {
        let hidden = model.forward(&self.ids, &self.segments, gradient)?;
        Ok(model.log_probs(&hidden, &self.targets, 1.0)?.log_probs)
    }

    /// Where each answer's tokens lie in [`Self::log_probs`].
    ///
    /// # Errors
    /// If an answer has no token that is predicted.
    pub fn rows(&self) -> Result<Rows<'_>> {
        Ok(Rows::new(&self.offsets)?)
    }

    /// How many pairs there are.
    pub fn pairs(&self) -> usize {
        self.offsets.len() / 2
    }

    /// Tokens that are fed.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}

/// Tokens that a pair feeds.
pub fn tokens(pair: &Pair) -> usize {
    2 * pair.prompt.len() + pair.chosen.len() + pair.rejected.len() - 2
}

/// The first position of an answer whose token is predicted: without a prompt nothing predicts the first.
fn first_predicted(pair: &Pair) -> usize {
    pair.prompt.len().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> Pair {
        Pair {
            prompt: prompt.to_vec(),
            chosen: chosen.to_vec(),
            rejected: rejected.to_vec(),
            margin: 0.0,
        }
    }

    #[test]
    fn every_answer_token_is_predicted_by_the_one_before() {
        let pairs = [
            pair(&[1, 2], &[3, 9], &[4, 5, 9]),
            pair(&[], &[6, 9], &[7, 8]),
        ];
        let answers = Answers::new(pairs.iter());
        assert_eq!(answers.ids, [1, 2, 3, 1, 2, 4, 5, 6, 7]);
        let targets: Vec<_> = answers.targets.iter().map(|t| (t.row, t.token)).collect();
        let first = [(1, 3), (2, 9), (4, 4), (5, 5), (6, 9)];
        assert_eq!(targets[..5], first);
        assert_eq!(
            targets[5..],
            [(7, 9), (8, 8)],
            "without a prompt the first has none"
        );
        assert_eq!(answers.offsets, [0, 2, 5, 6, 7]);
        assert_eq!((answers.pairs(), answers.tokens()), (2, 9));
        assert_eq!(pairs.iter().map(tokens).sum::<usize>(), 9);
    }
}
