//! Ragged layout: the tokens of all sequences stand end to end, and offsets mark where each
//! sequence starts.

use std::ops::Range;

use super::error::{Result, RlhfError, check_length};
use super::stats::Real;

/// A view of the offsets that cut a flat per-token slice into sequences.
///
/// Sequence `b` owns the tokens `offsets[b]..offsets[b + 1]`. No sequence is empty: a response
/// holds at least its stop token.
///
/// ```
/// use collimate::rlhf::RaggedRows;
/// let rows = RaggedRows::new(&[0, 2, 5]).unwrap();
/// assert_eq!((rows.len(), rows.tokens()), (2, 5));
/// assert_eq!(rows.sums("rewards", &[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap(), [3.0, 12.0]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaggedRows<'a> {
    offsets: &'a [usize], // B + 1
}

impl<'a> RaggedRows<'a> {
    /// Reads `offsets` (length B + 1, `offsets[0] = 0`, strictly rising).
    ///
    /// # Errors
    /// [`RlhfError::Offsets`] where they do not start at zero or do not rise.
    pub fn new(offsets: &'a [usize]) -> Result<Self> {
        let fault = |index, problem| Err(RlhfError::Offsets { index, problem });
        match offsets.first() {
            None => return fault(0, "there are none".to_string()),
            Some(&first) if first != 0 => return fault(0, format!("found {first}")),
            Some(_) => {}
        }
        match offsets.windows(2).position(|w| w[1] <= w[0]) {
            Some(i) => fault(
                i + 1,
                format!("found {} after {}", offsets[i + 1], offsets[i]),
            ),
            None => Ok(Self { offsets }),
        }
    }

    /// Number of sequences, B.
    pub fn len(self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether the batch has no sequence.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Number of tokens in all sequences together.
    pub fn tokens(self) -> usize {
        self.offsets[self.len()]
    }

    /// The token range of each sequence, in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator + 'a {
        self.offsets.windows(2).map(|w| w[0]..w[1])
    }

    /// Sum of a per-token quantity over each sequence: `[n]` → `[B]`.
    ///
    /// # Errors
    /// [`RlhfError::Length`], naming `what`, if `values` has not one element per token.
    pub fn sums<T: Real>(self, what: &'static str, values: &[T]) -> Result<Vec<f64>> {
        self.check_per_token(what, values.len())?;
        Ok(self
            .iter()
            .map(|row| values[row].iter().map(|&v| v.into()).sum())
            .collect())
    }

    /// Gives every token its sequence's value: `[B]` → `[n]`.
    ///
    /// # Errors
    /// [`RlhfError::Length`], naming `what`, if `values` has not one element per sequence.
    pub fn spread<T: Real>(self, what: &'static str, values: &[T]) -> Result<Vec<f64>> {
        self.check_per_sequence(what, values.len())?;
        let spread = self
            .iter()
            .zip(values)
            .flat_map(|(row, &v)| row.map(move |_| v.into()));
        Ok(spread.collect())
    }

    pub(super) fn check_per_token(self, what: &'static str, found: usize) -> Result<()> {
        check_length(what, found, self.tokens())
    }

    pub(super) fn check_per_sequence(self, what: &'static str, found: usize) -> Result<()> {
        check_length(what, found, self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_must_start_at_zero_and_rise() {
        for (offsets, index) in [(&[][..], 0), (&[1, 2], 0), (&[0, 3, 3], 2), (&[0, 3, 2], 2)] {
            match RaggedRows::new(offsets) {
                Err(RlhfError::Offsets { index: found, .. }) => assert_eq!(found, index),
                other => panic!("{offsets:?} gave {other:?}"),
            }
        }
    }

    #[test]
    fn no_sequence_is_a_batch_without_tokens() {
        let rows = RaggedRows::new(&[0]).unwrap();
        assert!(rows.is_empty());
        assert_eq!((rows.tokens(), rows.iter().count()), (0, 0));
    }

    #[test]
    fn spread_repeats_a_sequence_value_over_its_tokens() {
        let rows = RaggedRows::new(&[0, 1, 4]).unwrap();
        assert_eq!(
            rows.spread("advantages", &[0.5f32, -1.0]).unwrap(),
            [0.5, -1.0, -1.0, -1.0]
        );
    }

    #[test]
    fn a_wrong_length_names_the_argument() {
        let error = RaggedRows::new(&[0, 2])
            .unwrap()
            .sums("rewards", &[1.0])
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("rewards has 1 elements but 2 are needed")
        );
    }
}
