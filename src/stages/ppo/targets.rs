//! Scores and log-probs → advantages and returns.

use anyhow::Result;
use rollout::random::{Key, Purpose};

use super::rollouts::Sampler;
use super::scoring;
use super::state::State;
use crate::config::{KlEstimator as KlName, Ppo, ScoreNormalization};
use crate::data::example::Prompt;
use crate::rlhf::advantage::gae::{GaeConfig, gae};
use crate::rlhf::kl::objective_kl;
use crate::rlhf::reward::{rlhf_reward, token_rewards};
use crate::rlhf::score::{clip_scores, penalize_missing_eos};
use crate::rlhf::stats::{explained_variance, mean, whiten};
use crate::rlhf::{KlEstimator, Mean, RunningMoments, ScoreNormalizer};
use crate::roles::{Experience, Roles};
use crate::train::metrics::{Metrics, names};

/// Samples of the reference that fix the scale of scores.
const REFERENCE_SAMPLES: usize = 256;

/// What the roles said of a batch: per generated token, and per sequence.
pub struct Inputs<'a> {
    /// log π of the policy that sampled.
    pub old: &'a [f32],
    /// log π of the reference.
    pub reference: &'a [f32],
    /// The critic's values.
    pub values: &'a [f32],
    /// Raw scores, one a sequence.
    pub scores: &'a [f32],
}

/// What the update aims at, per generated token.
pub struct Targets {
    /// Advantages, whitened if configured.
    pub advantages: Vec<f64>,
    /// The critic's targets.
    pub returns: Vec<f64>,
}

/// Scores → token rewards → advantages and returns; the objective's metrics on the way.
pub fn targets(
    config: &Ppo,
    state: &mut State,
    experience: &Experience,
    inputs: &Inputs,
    metrics: &mut Metrics,
) -> Result<Targets> {
    let rows = experience.rows()?;
    let scores = shape_scores(config, state, experience, inputs.scores)?;
    let kl = estimator(config.kl_estimator).per_token(inputs.old, inputs.reference)?;
    let coef = state.kl.coef();
    let objective = objective_kl(inputs.old, inputs.reference, rows)?;
    metrics
        .set(names::OBJECTIVE_KL, objective)
        .set(names::OBJECTIVE_KL_COEF, coef)
        .set(names::OBJECTIVE_SCORES, mean(inputs.scores))
        .set(
            names::OBJECTIVE_RLHF_REWARD,
            rlhf_reward(&scores, &kl, coef, rows)?,
        );
    state.kl.update(objective, rows.len());

    let mut rewards = token_rewards(&scores, &kl, coef, rows)?;
    if config.whiten_rewards {
        rewards = whiten(&rewards, Mean::Keep);
    }
    let estimate = gae(
        &rewards,
        inputs.values,
        rows,
        GaeConfig {
            gamma: config.gamma,
            lam: config.lam,
        },
    )?;
    if let Some(explained) = explained_variance(inputs.values, &estimate.returns)? {
        metrics.set(names::VALUE_EXPLAINED_VARIANCE, explained);
    }
    let advantages = match config.whiten_advantages {
        true => whiten(&estimate.advantages, Mean::Remove),
        false => estimate.advantages,
    };
    Ok(Targets {
        advantages,
        returns: estimate.returns,
    })
}

/// Normalised, clipped, and less the penalty for not ending.
fn shape_scores(
    config: &Ppo,
    state: &mut State,
    experience: &Experience,
    raw: &[f32],
) -> Result<Vec<f64>> {
    state.normalizer.observe(raw);
    let mut scores = state.normalizer.normalize(raw);
    if let Some(limit) = config.score_clip {
        scores = clip_scores(&scores, limit)?;
    }
    if let Some(penalty) = config.missing_eos_penalty {
        let finished: Vec<bool> = experience.sequences().iter().map(|s| s.finished).collect();
        scores = penalize_missing_eos(&scores, &finished, penalty)?;
    }
    Ok(scores)
}

/// The scale that scores are brought to, measured on the reference's samples where the configuration asks for it.
pub fn normalizer(
    config: &Ppo,
    roles: &Roles,
    sampler: &Sampler,
    prompts: &[Prompt],
    seed: u64,
) -> Result<ScoreNormalizer> {
    match config.score_normalization {
        ScoreNormalization::None => Ok(ScoreNormalizer::None),
        ScoreNormalization::Running => Ok(ScoreNormalizer::Running(RunningMoments::default())),
        ScoreNormalization::Reference => {
            let prompts: Vec<_> = reference_prompts(prompts.len(), seed)
                .into_iter()
                .map(|i| (i as u64, &prompts[i]))
                .collect();
            let samples = sampler.sample_all(&roles.reference, &prompts, Purpose::Split)?;
            let scores = scoring::score(config, &roles.reward, sampler, &prompts, &samples)?;
            Ok(ScoreNormalizer::from_reference(&scores.total)?)
        }
    }
}

/// Which of `count` prompts the reference answers.
fn reference_prompts(count: usize, seed: u64) -> Vec<usize> {
    let mut chosen = Key::new(seed, Purpose::Split).permutation(0, count);
    chosen.truncate(REFERENCE_SAMPLES);
    chosen
}

fn estimator(name: KlName) -> KlEstimator {
    match name {
        KlName::K1 => KlEstimator::K1,
        KlName::K2 => KlEstimator::K2,
        KlName::K3 => KlEstimator::K3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompts_of_the_reference_follow_the_seed() {
        let chosen = reference_prompts(1000, 1);
        assert_eq!(chosen.len(), REFERENCE_SAMPLES);
        assert_eq!(reference_prompts(1000, 1), chosen);
        assert_ne!(reference_prompts(1000, 2), chosen);
        let mut all = reference_prompts(10, 1);
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }
}
