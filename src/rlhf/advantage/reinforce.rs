//! The return-to-go of the KL-penalised rewards, whitened over the batch, replaces the critic.

use super::super::error::Result;
use super::super::ragged_rows::RaggedRows;
use super::super::stats::{Mean, Real, whiten};

/// Gₜ = rₜ + γ Gₜ₊₁ within each sequence: `[n]` → `[n]`.
///
/// # Errors
/// A length error if `rewards` has not one element per token.
pub fn return_to_go<T: Real>(rewards: &[T], rows: RaggedRows, gamma: f64) -> Result<Vec<f64>> {
    rows.check_per_token("rewards", rewards.len())?;
    let mut returns = vec![0.0; rows.tokens()];
    for row in rows.iter() {
        let mut later = 0.0;
        for t in row.rev() {
            later = rewards[t].into() + gamma * later;
            returns[t] = later;
        }
    }
    Ok(returns)
}

/// [`return_to_go`] whitened over all tokens of the batch: `[n]` → `[n]`. The paper has γ = 1.
///
/// # Errors
/// A length error if `rewards` has not one element per token.
pub fn reinforce_plus_plus<T: Real>(
    rewards: &[T],
    rows: RaggedRows,
    gamma: f64,
) -> Result<Vec<f64>> {
    Ok(whiten(&return_to_go(rewards, rows, gamma)?, Mean::Remove))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_add_up_what_follows_within_the_sequence() {
        let rows = RaggedRows::new(&[0, 3, 4]).unwrap();
        assert_eq!(
            return_to_go(&[1.0, 2.0, 4.0, 8.0], rows, 0.5).unwrap(),
            [3.0, 4.0, 4.0, 8.0]
        );
    }
}
