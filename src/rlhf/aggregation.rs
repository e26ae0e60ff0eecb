//! How per-token losses become one number.
//!
//! Every choice is a weighted sum, loss = Σ wₜ lₜ, whose weights depend on the whole optimizer step. A
//! micro-batch therefore gets its part of the step's loss, and the parts add up to the same gradient
//! however the step is cut.

use super::error::{Result, check_positive};
use super::rows::Rows;

/// The mean that a loss takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LossAggregation {
    /// Mean over all tokens, each token equal: PPO, and DAPO (Yu et al. 2025, section 3.3).
    Token,
    /// Mean over sequences of the mean over their tokens: GRPO (Shao et al. 2024, eq. 3).
    Sequence,
    /// Mean over sequences of the sum over their tokens divided by this constant (the longest possible
    /// response): Dr. GRPO (Liu et al. 2025, section 3.2), free of a length bias.
    ConstantLength(f64),
}

/// What one optimizer step holds in all its micro-batches together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Totals {
    /// Response tokens that count.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
}

impl Totals {
    /// Totals of a step that consists of these rows alone.
    pub fn of(rows: Rows) -> Self {
        Self {
            tokens: rows.tokens(),
            sequences: rows.len(),
        }
    }
}

impl LossAggregation {
    /// The weight of each token of `rows`, a part of the step that `totals` describes: `[n]`.
    ///
    /// # Errors
    /// [`RlhfError::Range`](super::RlhfError::Range) if a total or the constant length is zero.
    pub fn weights(self, rows: Rows, totals: Totals) -> Result<Vec<f64>> {
        check_positive("the step's token count", totals.tokens as f64)?;
        check_positive("the step's sequence count", totals.sequences as f64)?;
        let sequences = totals.sequences as f64;
        match self {
            Self::Token => Ok(vec![1.0 / totals.tokens as f64; rows.tokens()]),
            Self::Sequence => {
                let of_row: Vec<f64> = rows
                    .iter()
                    .map(|row| 1.0 / (sequences * row.len() as f64))
                    .collect();
                rows.spread("sequence weights", &of_row)
            }
            Self::ConstantLength(length) => {
                check_positive("the constant length of the loss", length)?;
                Ok(vec![1.0 / (sequences * length); rows.tokens()])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSETS: [usize; 3] = [0, 1, 4];

    fn weights(aggregation: LossAggregation) -> Vec<f64> {
        let rows = Rows::new(&OFFSETS).unwrap();
        aggregation.weights(rows, Totals::of(rows)).unwrap()
    }

    #[test]
    fn each_aggregation_weighs_tokens_its_way() {
        assert_eq!(weights(LossAggregation::Token), [0.25; 4]);
        let sixth = 1.0 / 6.0;
        assert_eq!(
            weights(LossAggregation::Sequence),
            [0.5, sixth, sixth, sixth]
        );
        assert_eq!(weights(LossAggregation::ConstantLength(8.0)), [0.0625; 4]);
    }

    #[test]
    fn micro_batches_add_up_to_the_step() {
        let rows = Rows::new(&OFFSETS).unwrap();
        let (first, second) = (Rows::new(&[0, 1]).unwrap(), Rows::new(&[0, 3]).unwrap());
        for aggregation in [
            LossAggregation::Token,
            LossAggregation::Sequence,
            LossAggregation::ConstantLength(5.0),
        ] {
            let mut parts = aggregation.weights(first, Totals::of(rows)).unwrap();
            parts.extend(aggregation.weights(second, Totals::of(rows)).unwrap());
            assert_eq!(parts, weights(aggregation));
        }
    }

    #[test]
    fn an_empty_step_is_refused() {
        let rows = Rows::new(&[0]).unwrap();
        assert!(
            LossAggregation::Token
                .weights(rows, Totals::of(rows))
                .is_err()
        );
    }
}
