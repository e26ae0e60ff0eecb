//! How per-token losses become one number.
//!
//! Every choice is a weighted sum, loss = Σ wₜ lₜ, whose weights depend on the whole optimizer
//! step. The losses of a step's micro-batches therefore add up to the loss and gradient of the
//! step, however the step is cut.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Result, check_positive};
use super::ragged_rows::RaggedRows;

/// The mean over a minibatch that turns per-token losses of the policy into one number.
///
/// Sources: DAPO (Yu et al. 2025, section 3.3) for `Token`, GRPO (Shao et al. 2024, eq. 3) for
/// `Sequence`, Dr. GRPO (Liu et al. 2025, section 3.2) for `Constant`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LossAggregation {
    /// Mean over all tokens of the minibatch: TRL's `bnpo` and `dapo`, verl's `token-mean`.
    Token,
    /// Mean over sequences of the mean over each one's tokens: TRL's `grpo`, verl's
    /// `seq-mean-token-mean`.
    Sequence,
    /// Mean over sequences of the sum over each one's tokens divided by `max_new_tokens`: TRL's
    /// `dr_grpo`, verl's `seq-mean-token-sum-norm`.
    Constant,
}

/// Sizes of one optimizer step, all its micro-batches together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Totals {
    /// Response tokens of the step.
    pub tokens: usize,
    /// Sequences of the step.
    pub sequences: usize,
    /// Most tokens that a response may have: the divisor of [`LossAggregation::Constant`].
    pub longest: usize,
}

impl Totals {
    /// Totals of a step that consists of these rows alone, none of which may exceed `longest`
    /// tokens.
    pub fn of(rows: RaggedRows, longest: usize) -> Self {
        Self {
            tokens: rows.tokens(),
            sequences: rows.len(),
            longest,
        }
    }
}

impl LossAggregation {
    /// The weight of each token of `rows`, a part of the step that `totals` describes: `[n]`.
    ///
    /// # Errors
    /// [`RlhfError::Range`](super::RlhfError::Range) if a total is zero.
    pub fn weights(self, rows: RaggedRows, totals: Totals) -> Result<Vec<f64>> {
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
            Self::Constant => {
                let longest = totals.longest as f64;
                check_positive("the longest response of the loss", longest)?;
                Ok(vec![1.0 / (sequences * longest); rows.tokens()])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSETS: [usize; 3] = [0, 1, 4];

    fn weights(aggregation: LossAggregation) -> Vec<f64> {
        let rows = RaggedRows::new(&OFFSETS).unwrap();
        aggregation.weights(rows, Totals::of(rows, 8)).unwrap()
    }

    #[test]
    fn each_aggregation_weighs_tokens_its_way() {
        assert_eq!(weights(LossAggregation::Token), [0.25; 4]);
        let sixth = 1.0 / 6.0;
        assert_eq!(
            weights(LossAggregation::Sequence),
            [0.5, sixth, sixth, sixth]
        );
        assert_eq!(weights(LossAggregation::Constant), [0.0625; 4]);
    }

    #[test]
    fn micro_batches_add_up_to_the_step() {
        let rows = RaggedRows::new(&OFFSETS).unwrap();
        let (first, second) = (
            RaggedRows::new(&[0, 1]).unwrap(),
            RaggedRows::new(&[0, 3]).unwrap(),
        );
        for aggregation in [
            LossAggregation::Token,
            LossAggregation::Sequence,
            LossAggregation::Constant,
        ] {
            let mut parts = aggregation.weights(first, Totals::of(rows, 8)).unwrap();
            parts.extend(aggregation.weights(second, Totals::of(rows, 8)).unwrap());
            assert_eq!(parts, weights(aggregation));
        }
    }

    #[test]
    fn an_empty_step_is_refused() {
        let rows = RaggedRows::new(&[0]).unwrap();
        assert!(
            LossAggregation::Token
                .weights(rows, Totals::of(rows, 8))
                .is_err()
        );
    }
}
