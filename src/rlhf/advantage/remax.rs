//! ReMax: Li et al. 2024, "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method
//! for Aligning Large Language Models", section 4. The score of the prompt's greedy completion
//! replaces the critic: it is a function of the prompt and the policy alone, so the gradient stays
//! unbiased.

use super::super::error::{Result, RlhfError};
use super::super::stats::Real;

/// A = R − b within each prompt's samples: `[B]`, one advantage a sequence.
///
/// `returns` is `[B]` with the `samples` of a prompt side by side, `baselines` is `[B / samples]`,
/// one a prompt.
///
/// ```
/// use collimate::rlhf::advantage::remax::remax;
/// assert_eq!(remax(&[1.0, 3.0, 0.5, 0.5], &[2.0, 0.5], 2).unwrap(), [-1.0, 1.0, 0.0, 0.0]);
/// ```
///
/// # Errors
/// [`RlhfError::Baselines`] if there are not `samples` returns to each baseline.
pub fn remax<R: Real, B: Real>(returns: &[R], baselines: &[B], samples: usize) -> Result<Vec<f64>> {
    if samples == 0 || baselines.len() * samples != returns.len() {
        return Err(RlhfError::Baselines {
            sequences: returns.len(),
            baselines: baselines.len(),
            samples,
        });
    }
    let of_prompt = |(group, &baseline): (&[R], &B)| {
        let advantage = move |&r: &R| r.into() - baseline.into();
        group.iter().map(advantage).collect::<Vec<f64>>()
    };
    let groups = returns.chunks(samples).zip(baselines);
    Ok(groups.flat_map(of_prompt).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: prompts of three samples, whose greedy completions score 0.25 and −1.
    #[test]
    fn each_sample_is_held_against_its_prompts_greedy_completion() {
        let returns = [0.25, 1.5, -0.75, -1.0, 0.0, -3.5];
        let found = remax(&returns, &[0.25, -1.0], 3).unwrap();
        assert_eq!(found, [0.0, 1.25, -1.0, 0.0, 1.0, -2.5]);
    }

    #[test]
    fn one_baseline_a_prompt_is_needed() {
        for (returns, baselines, samples) in [(4, 1, 2), (4, 4, 2), (3, 1, 2), (2, 2, 0)] {
            let error = remax(&vec![0.0; returns], &vec![0.0; baselines], samples).unwrap_err();
            assert!(matches!(error, RlhfError::Baselines { .. }), "{error}");
        }
    }
}
