//! Scores, log-probs and values → advantages and returns.
//!
//! The KL compares policy and reference over the whole vocabulary, whatever ids sampling kept.
//! A KL without weight counts as zero.
//!
//! If the KL is part of the rewards, one rule holds for all estimators: each token's reward is
//! −kl_coef · KLₜ, and the last token's reward has the shaped score added. GAE and REINFORCE++ read
//! these token rewards; GRPO, Dr. GRPO, RLOO and ReMax read their sum over the sequence, shaped
//! score − kl_coef · Σₜ KLₜ. The deviation that GRPO divides by therefore includes the KL: in a
//! group of equal scores it is the deviation of the KL alone. ReMax's baseline is the shaped score
//! of the greedy completion without a KL; any function of the prompt alone is a valid baseline.

use anyhow::{Context as _, Result};

use super::shaping::shaped_scores;
use super::state::PpoState;
use crate::config::{AdvantageEstimator, KlIn, Ppo};
use crate::rlhf::advantage::gae::{GaeConfig, gae};
use crate::rlhf::advantage::group::{dr_grpo, grpo, rloo};
use crate::rlhf::advantage::reinforce::reinforce_plus_plus;
use crate::rlhf::advantage::remax::remax;
use crate::rlhf::kl::objective_kl;
use crate::rlhf::reward::{rlhf_reward, token_rewards};
use crate::rlhf::stats::{explained_variance, mean, whiten};
use crate::rlhf::{self, Mean, RaggedRows};
use crate::roles::Experience;
use crate::train::metrics::{Metrics, names};

/// Adds advantages and returns to the experience, and sets the objective's metrics. `baseline`
/// holds the greedy completions that ReMax compares with.
///
/// The normaliser takes in the scores and the KL controller the KL. Both the rewards and the
/// metrics use the coefficient from before the controller's step.
///
/// # Errors
/// If a quantity that the estimator reads is missing.
pub fn add_advantages(
    config: &Ppo,
    state: &mut PpoState,
    experience: &mut Experience,
    baseline: Option<&Experience>,
    metrics: &mut Metrics,
) -> Result<()> {
    let raw = &experience.scores().total;
    state.normalizer.observe(raw);
    let shape = |of: &Experience| shaped_scores(config, &state.normalizer, of);
    let (scores, baselines) = (shape(experience)?, baseline.map(shape).transpose()?);
    let coef = state.kl.coef();
    let kl = token_kl(config, state, experience, metrics)?;
    let rows = experience.rows()?;
    let total = rlhf_reward(&scores, &kl, coef, rows)?;
    metrics
        .set(names::OBJECTIVE_KL_COEF, coef)
        .set(names::OBJECTIVE_SCORES, mean(raw))
        .set(names::OBJECTIVE_RLHF_REWARD, total);
    let reward_coef = match config.kl_in() {
        KlIn::Reward => coef,
        KlIn::Loss => 0.0,
    };
    let rewards = token_rewards(&scores, &kl, reward_coef, rows)?;
    let values = experience.values();
    let estimates = estimate(config, rewards, rows, values, baselines.as_deref())?;
    if let Some((values, returns)) = values.zip(estimates.returns.as_deref())
        && let Some(explained) = explained_variance(values, returns)?
    {
        metrics.set(names::VALUE_EXPLAINED_VARIANCE, explained);
    }
    Ok(experience.set_advantages(estimates.advantages, estimates.returns)?)
}

/// The KL of each token, `[n]`; zeros without a reference. Sets `objective/kl`, which the
/// controller takes in.
fn token_kl(
    config: &Ppo,
    state: &mut PpoState,
    experience: &Experience,
    metrics: &mut Metrics,
) -> Result<Vec<f64>> {
    let Some(reference) = experience.reference_log_probs() else {
        return Ok(vec![0.0; experience.token_count()]);
    };
    let (policy, rows) = (&experience.policy()?.whole_log_probs, experience.rows()?);
    let objective = objective_kl(policy, reference, rows)?;
    metrics.set(names::OBJECTIVE_KL, objective);
    // During the critic's warm-up the policy does not move, so its KL says nothing about the
    // coefficient.
    if state.iteration >= config.critic.critic_warmup as u64 {
        state.kl.update(objective, rows.len());
    }
    Ok(config.kl_estimator().per_token(policy, reference)?)
}

/// Advantages and, with a critic, returns: `[n]` each.
#[derive(Debug)]
struct Estimates {
    advantages: Vec<f64>,
    returns: Option<Vec<f64>>,
}

/// Token rewards → advantages by the configured estimator, whitened if configured.
fn estimate(
    config: &Ppo,
    mut rewards: Vec<f64>,
    rows: RaggedRows,
    values: Option<&[f32]>,
    baselines: Option<&[f64]>,
) -> Result<Estimates> {
    let objective = &config.objective;
    if objective.whiten_rewards {
        rewards = whiten(&rewards, Mean::Keep);
    }
    let samples = config.num_samples_per_prompt;
    let mut returns = None;
    let advantages = match objective.advantage_estimator {
        AdvantageEstimator::Gae => {
            let values = values.context("the estimator gae needs the values of a critic")?;
            let (gamma, lam) = (objective.gamma, config.critic.lam);
            let found = gae(&rewards, values, rows, GaeConfig { gamma, lam })?;
            returns = Some(found.returns);
            found.advantages
        }
        AdvantageEstimator::ReinforcePlusPlus => {
            reinforce_plus_plus(&rewards, rows, objective.gamma)?
        }
        AdvantageEstimator::Grpo => of_sequences(&rewards, rows, |r| grpo(r, samples))?,
        AdvantageEstimator::DrGrpo => of_sequences(&rewards, rows, |r| dr_grpo(r, samples))?,
        AdvantageEstimator::Rloo => of_sequences(&rewards, rows, |r| rloo(r, samples))?,
        AdvantageEstimator::Remax => {
            let baselines = baselines.context("the estimator remax needs greedy completions")?;
            of_sequences(&rewards, rows, |r| remax(r, baselines, samples))?
        }
    };
    // REINFORCE++ has whitened already.
    let whitens = objective.whiten_advantages()
        && objective.advantage_estimator != AdvantageEstimator::ReinforcePlusPlus;
    let advantages = match whitens {
        true => whiten(&advantages, Mean::Remove),
        false => advantages,
    };
    Ok(Estimates {
        advantages,
        returns,
    })
}

/// Sums the rewards of each sequence, estimates one advantage a sequence, and gives it to each of
/// the sequence's tokens.
fn of_sequences(
    rewards: &[f64],
    rows: RaggedRows,
    estimate: impl Fn(&[f64]) -> rlhf::Result<Vec<f64>>,
) -> Result<Vec<f64>> {
    let sums = rows.sums("rewards", rewards)?;
    Ok(rows.spread("advantages", &estimate(&sums)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two prompts of two samples, of 2, 1, 1 and 2 tokens; their returns are 1, 3, −2 and 0.
    const REWARDS: [f64; 6] = [-0.5, 1.5, 3.0, -2.0, 0.25, -0.25];
    const OFFSETS: [usize; 5] = [0, 2, 3, 4, 6];

    fn config(estimator: AdvantageEstimator) -> Ppo {
        let mut config = Ppo {
            num_samples_per_prompt: 2,
            ..Ppo::default()
        };
        config.objective.advantage_estimator = estimator;
        config
    }

    fn advantages(config: &Ppo) -> Vec<f64> {
        let rows = RaggedRows::new(&OFFSETS).unwrap();
        let baselines = [0.5, -1.0];
        let found = estimate(config, REWARDS.to_vec(), rows, None, Some(&baselines)).unwrap();
        assert!(found.returns.is_none());
        found.advantages
    }

    #[track_caller]
    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 1e-5, "{found:?} {expected:?}");
        }
    }

    /// By hand. Both groups have mean m ± 1, so a deviation of √2; the mean of the others is the
    /// other.
    #[test]
    fn each_estimator_credits_the_returns_of_sequences() {
        let half = 1.0 / 2f64.sqrt();
        for (estimator, of_sequences) in [
            (AdvantageEstimator::Grpo, [-half, half, -half, half]),
            (AdvantageEstimator::DrGrpo, [-1.0, 1.0, -1.0, 1.0]),
            (AdvantageEstimator::Rloo, [-2.0, 2.0, -2.0, 2.0]),
            (AdvantageEstimator::Remax, [0.5, 2.5, -1.0, 1.0]),
        ] {
            let [a, b, c, d] = of_sequences;
            assert_close(&advantages(&config(estimator)), &[a, a, b, c, d, d]);
        }
    }

    /// By hand: returns to go 1, 1.5, 3, −2, 0, −0.25, of mean 13/24 and mean square 15.5625 / 6 −
    /// (13/24)².
    #[test]
    fn reinforce_plus_plus_whitens_what_follows_a_token() {
        let to_go = [1.0, 1.5, 3.0, -2.0, 0.0, -0.25];
        let mean = 13.0 / 24.0;
        let squares: f64 = 1.0 + 2.25 + 9.0 + 4.0 + 0.0 + 0.0625;
        let deviation = (squares / 6.0 - mean * mean).sqrt();
        let expected = to_go.map(|g| (g - mean) / deviation);
        let found = advantages(&config(AdvantageEstimator::ReinforcePlusPlus));
        assert_close(&found, &expected);
    }

    #[test]
    fn whitening_of_advantages_is_a_choice_where_it_is_no_part_of_the_estimator() {
        let mut config = config(AdvantageEstimator::DrGrpo);
        assert_eq!(advantages(&config), [-1.0, -1.0, 1.0, -1.0, 1.0, 1.0]);
        config.objective.whiten_advantages = Some(true);
        config.num_samples_per_prompt = 4;
        // Returns less their mean ½, over the six tokens: ½, ½, 2½, −2½, −½, −½ of mean 0 and mean
        // square 13.5 / 6.
        let deviation = (13.5f64 / 6.0).sqrt();
        let expected = [0.5, 0.5, 2.5, -2.5, -0.5, -0.5].map(|a| a / deviation);
        assert_close(&advantages(&config), &expected);
    }

    #[test]
    fn only_gae_has_returns_and_it_needs_values() {
        let config = config(AdvantageEstimator::Gae);
        let rows = RaggedRows::new(&OFFSETS).unwrap();
        let found = estimate(&config, REWARDS.to_vec(), rows, Some(&[0.5; 6]), None);
        assert_eq!(found.unwrap().returns.unwrap().len(), 6);
        let refused = estimate(&config, REWARDS.to_vec(), rows, None, None).unwrap_err();
        assert!(refused.to_string().contains("critic"), "{refused}");
    }
}
