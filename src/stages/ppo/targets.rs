//! Scores and log-probs → advantages, and what the critic aims at.
//!
//! The KL compares policy and reference over the whole vocabulary, whatever sampling kept of it: what leaves the reference's view is not
//! free. Where the KL has no weight there is none.
//!
//! One rule holds for the KL of all estimators where the rewards carry it: it is a reward of each token, −kl_coef · KLₜ, beside the score at the end. What an
//! estimator sees is the rewards of the tokens (GAE, REINFORCE++) or their sum, the return of the sequence: score − kl_coef · Σₜ KLₜ
//! (GRPO, Dr. GRPO, RLOO, ReMax). So GRPO divides by a deviation to which the KL adds: in a group whose scores are all alike it is the
//! KL's alone. ReMax's baseline is the shaped score of the greedy completion, without a KL: as a function of the prompt alone it may be
//! any.

use anyhow::{Context as _, Result};

use super::batch::Sampled;
use super::scores;
use super::state::State;
use crate::config::{AdvantageEstimator, KlIn, Ppo};
use crate::rlhf::advantage::gae::{Gae, GaeConfig, gae};
use crate::rlhf::advantage::group::{dr_grpo, grpo, rloo};
use crate::rlhf::advantage::reinforce::reinforce_plus_plus;
use crate::rlhf::advantage::remax::remax;
use crate::rlhf::kl::objective_kl;
use crate::rlhf::reward::{rlhf_reward, token_rewards};
use crate::rlhf::stats::{explained_variance, mean, whiten};
use crate::rlhf::{self, Mean, Rows};
use crate::roles::Experience;
use crate::train::metrics::{Metrics, names};

/// What the roles said of a batch: per generated token, and per sequence.
pub struct Inputs<'a> {
    /// log π of the policy that sampled, over the whole vocabulary.
    pub policy: &'a [f32],
    /// log π of the reference, over the whole vocabulary; none where the KL has no weight.
    pub reference: Option<&'a [f32]>,
    /// The critic's values, where there is a critic.
    pub values: Option<Vec<f32>>,
    /// Raw scores, one a sequence.
    pub scores: &'a [f32],
    /// The prompts' greedy completions, where the estimator asks for them.
    pub baseline: Option<&'a Sampled>,
}

/// What the update aims at.
#[derive(Debug)]
pub struct Targets {
    /// Advantages per generated token, whitened if configured.
    pub advantages: Vec<f64>,
    /// The critic's, where there is a critic.
    pub critic: Option<CriticTargets>,
    /// Weight of the KL that the policy's loss carries; `None` where the rewards carry it, or nothing does.
    pub loss_kl_coef: Option<f64>,
}

/// What the critic's update reads, per generated token.
#[derive(Debug)]
pub struct CriticTargets {
    /// Values before the update.
    pub old_values: Vec<f32>,
    /// What they should have been.
    pub returns: Vec<f64>,
}

/// Scores → token rewards → advantages and returns; the objective's metrics on the way.
///
/// # Errors
/// If the inputs do not fit together.
pub fn targets(
    config: &Ppo,
    state: &mut State,
    experience: &Experience,
    inputs: Inputs,
    metrics: &mut Metrics,
) -> Result<Targets> {
    let rows = experience.rows()?;
    state.normalizer.observe(inputs.scores);
    let shape = |sequences: &_, raw: &_| scores::shape(config, &state.normalizer, sequences, raw);
    let scores = shape(experience.sequences(), inputs.scores)?;
    let baselines = inputs
        .baseline
        .map(|b| shape(&b.sequences, &b.scores.total));
    let baselines = baselines.transpose()?;
    let coef = state.kl.coef();
    let kl = token_kl(config, state, &inputs, rows, metrics)?;
    metrics
        .set(names::OBJECTIVE_KL_COEF, coef)
        .set(names::OBJECTIVE_SCORES, mean(inputs.scores))
        .set(
            names::OBJECTIVE_RLHF_REWARD,
            rlhf_reward(&scores, &kl, coef, rows)?,
        );
    let (reward_coef, loss_kl_coef) = match config.kl_in() {
        KlIn::Reward => (coef, None),
        KlIn::Loss => (0.0, Some(coef).filter(|&coef| coef > 0.0)),
    };
    let rewards = token_rewards(&scores, &kl, reward_coef, rows)?;
    let mut targets = estimate(config, rewards, rows, inputs.values, baselines.as_deref())?;
    targets.loss_kl_coef = loss_kl_coef;
    if let Some(critic) = &targets.critic
        && let Some(explained) = explained_variance(&critic.old_values, &critic.returns)?
    {
        metrics.set(names::VALUE_EXPLAINED_VARIANCE, explained);
    }
    Ok(targets)
}

/// The KL of each token, and `objective/kl`, which the controller takes in; zeros where there is no reference to compare with.
fn token_kl(
    config: &Ppo,
    state: &mut State,
    inputs: &Inputs,
    rows: Rows,
    metrics: &mut Metrics,
) -> Result<Vec<f64>> {
    let Some(reference) = inputs.reference else {
        return Ok(vec![0.0; rows.tokens()]);
    };
    let objective = objective_kl(inputs.policy, reference, rows)?;
    metrics.set(names::OBJECTIVE_KL, objective);
    // While the critic warms up the policy stands still, and its KL says nothing about the coefficient.
    if state.iteration >= config.critic.critic_warmup as u64 {
        state.kl.update(objective, rows.len());
    }
    Ok(config.kl_estimator().per_token(inputs.policy, reference)?)
}

/// Rewards of the tokens → advantages, by the configured estimator and whitened if configured.
fn estimate(
    config: &Ppo,
    mut rewards: Vec<f64>,
    rows: Rows,
    values: Option<Vec<f32>>,
    baselines: Option<&[f64]>,
) -> Result<Targets> {
    let objective = &config.objective;
    if objective.whiten_rewards {
        rewards = whiten(&rewards, Mean::Keep);
    }
    let samples = config.num_samples_per_prompt;
    let mut critic = None;
    let advantages = match objective.advantage_estimator {
        AdvantageEstimator::Gae => {
            let values = values.context("gae was asked for without a critic")?;
            let found = generalised(config, &rewards, values, rows)?;
            critic = Some(found.critic);
            found.advantages
        }
        AdvantageEstimator::ReinforcePlusPlus => {
            reinforce_plus_plus(&rewards, rows, objective.gamma)?
        }
        AdvantageEstimator::Grpo => of_sequences(&rewards, rows, |r| grpo(r, samples))?,
        AdvantageEstimator::DrGrpo => of_sequences(&rewards, rows, |r| dr_grpo(r, samples))?,
        AdvantageEstimator::Rloo => of_sequences(&rewards, rows, |r| rloo(r, samples))?,
        AdvantageEstimator::Remax => {
            let baselines = baselines.context("remax was asked for without a baseline")?;
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
    Ok(Targets {
        advantages,
        critic,
        loss_kl_coef: None,
    })
}

/// What a critic's values lead to.
struct Generalised {
    advantages: Vec<f64>,
    critic: CriticTargets,
}

fn generalised(
    config: &Ppo,
    rewards: &[f64],
    old_values: Vec<f32>,
    rows: Rows,
) -> Result<Generalised> {
    let settings = GaeConfig {
        gamma: config.objective.gamma,
        lam: config.critic.lam,
    };
    let Gae {
        advantages,
        returns,
    } = gae(rewards, &old_values, rows, settings)?;
    Ok(Generalised {
        advantages,
        critic: CriticTargets {
            old_values,
            returns,
        },
    })
}

/// Returns of whole sequences → their advantages by `estimate` → the same for each of their tokens.
fn of_sequences(
    rewards: &[f64],
    rows: Rows,
    estimate: impl Fn(&[f64]) -> rlhf::Result<Vec<f64>>,
) -> Result<Vec<f64>> {
    let returns = rows.sums("rewards", rewards)?;
    Ok(rows.spread("advantages", &estimate(&returns)?)?)
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
        let rows = Rows::new(&OFFSETS).unwrap();
        let baselines = [0.5, -1.0];
        let found = estimate(config, REWARDS.to_vec(), rows, None, Some(&baselines)).unwrap();
        assert!(found.critic.is_none());
        found.advantages
    }

    #[track_caller]
    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 1e-5, "{found:?} {expected:?}");
        }
    }

    /// By hand. Both groups have mean m ± 1, so a deviation of √2; the mean of the others is the other.
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

    /// By hand: returns to go 1, 1.5, 3, −2, 0, −0.25, of mean 13/24 and mean square 15.5625 / 6 − (13/24)².
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
        // Returns less their mean ½, over the six tokens: ½, ½, 2½, −2½, −½, −½ of mean 0 and mean square 13.5 / 6.
        let deviation = (13.5f64 / 6.0).sqrt();
        let expected = [0.5, 0.5, 2.5, -2.5, -0.5, -0.5].map(|a| a / deviation);
        assert_close(&advantages(&config), &expected);
    }

    #[test]
    fn only_gae_has_something_for_a_critic() {
        let config = config(AdvantageEstimator::Gae);
        let rows = Rows::new(&OFFSETS).unwrap();
        let values = vec![0.5f32; 6];
        let found = estimate(&config, REWARDS.to_vec(), rows, Some(values.clone()), None);
        let critic = found.unwrap().critic.unwrap();
        assert_eq!(critic.old_values, values);
        assert_eq!(critic.returns.len(), 6);
        let refused = estimate(&config, REWARDS.to_vec(), rows, None, None).unwrap_err();
        assert!(refused.to_string().contains("critic"), "{refused}");
    }
}
