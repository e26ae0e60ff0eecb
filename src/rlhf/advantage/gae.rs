//! Generalised advantage estimation: Schulman et al. 2016, "High-Dimensional Continuous Control
//! Using Generalized Advantage Estimation", eq. 16.

use super::super::error::Result;
use super::super::ragged_rows::RaggedRows;
use super::super::stats::Real;

/// Discount and trace decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaeConfig {
    /// γ, the discount of later rewards.
    pub gamma: f64,
    /// λ: 0 uses the critic's values alone, 1 the observed return alone.
    pub lam: f64,
}

/// Result of [`gae`]; both are `[n]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gae {
    /// Advantages Aₜ, not whitened.
    pub advantages: Vec<f64>,
    /// Returns Aₜ + Vₜ, the critic's targets.
    pub returns: Vec<f64>,
}

/// δₜ = rₜ + γ Vₜ₊₁ − Vₜ and Aₜ = δₜ + γλ Aₜ₊₁, backwards through each sequence.
///
/// `rewards` and `values` are `[n]`; `values[t]` is the value at the position that predicts token
/// t. After a sequence's last token V and A are 0, also for a response that was cut: it is not
/// bootstrapped.
///
/// ```
/// use collimate::rlhf::{RaggedRows, advantage::gae::{GaeConfig, gae}};
/// let config = GaeConfig { gamma: 1.0, lam: 1.0 };
/// let rows = RaggedRows::new(&[0, 3]).unwrap();
/// let result = gae(&[0.0, 0.0, 1.0], &[0.5, 0.25, 0.75], rows, config).unwrap();
/// assert_eq!(result.returns, [1.0, 1.0, 1.0]); // with λ = 1 the observed return
/// assert_eq!(result.advantages, [0.5, 0.75, 0.25]);
/// ```
///
/// # Errors
/// A length error if an argument has not one element per token.
pub fn gae<R: Real, V: Real>(
    rewards: &[R],
    values: &[V],
    rows: RaggedRows,
    config: GaeConfig,
) -> Result<Gae> {
    rows.check_per_token("rewards", rewards.len())?;
    rows.check_per_token("values", values.len())?;
    let mut advantages = vec![0.0; rows.tokens()];
    for row in rows.iter() {
        let (mut next_value, mut next_advantage) = (0.0, 0.0);
        for t in row.rev() {
            let value = values[t].into();
            let delta = rewards[t].into() + config.gamma * next_value - value;
            next_advantage = delta + config.gamma * config.lam * next_advantage;
            next_value = value;
            advantages[t] = next_advantage;
        }
    }
    let returns = advantages
        .iter()
        .zip(values)
        .map(|(a, &v)| a + v.into())
        .collect();
    Ok(Gae {
        advantages,
        returns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REWARDS: [f64; 5] = [0.1, -0.2, 1.0, 0.3, -1.0];
    const VALUES: [f64; 5] = [0.4, 0.6, -0.5, 0.2, 0.1];

    #[test]
    fn lambda_zero_is_the_one_step_error() {
        let rows = RaggedRows::new(&[0, 3, 5]).unwrap();
        let found = gae(
            &REWARDS,
            &VALUES,
            rows,
            GaeConfig {
                gamma: 0.9,
                lam: 0.0,
            },
        )
        .unwrap();
        for (t, next) in [0.6, -0.5, 0.0, 0.1, 0.0].into_iter().enumerate() {
            assert!((found.advantages[t] - (REWARDS[t] + 0.9 * next - VALUES[t])).abs() < 1e-12);
        }
    }

    #[test]
    fn sequences_do_not_see_each_other() {
        let config = GaeConfig {
            gamma: 0.97,
            lam: 0.9,
        };
        let together = gae(
            &REWARDS,
            &VALUES,
            RaggedRows::new(&[0, 3, 5]).unwrap(),
            config,
        )
        .unwrap();
        let alone = |range: std::ops::Range<usize>| {
            let offsets = [0, range.len()];
            let rows = RaggedRows::new(&offsets).unwrap();
            gae(&REWARDS[range.clone()], &VALUES[range], rows, config)
                .unwrap()
                .advantages
        };
        assert_eq!(together.advantages, [alone(0..3), alone(3..5)].concat());
    }
}
