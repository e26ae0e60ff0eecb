//! Raw scores → what is rewarded: on a common scale, clipped, less the penalties for not ending and for being too long.

use anyhow::{Context as _, Result};
use rollout::random::{Key, Purpose};

use super::rewards;
use super::rollouts::Sampler;
use crate::config::{Ppo, ScoreNormalization};
use crate::data::example::Prompt;
use crate::reward::Scores;
use crate::rlhf::score::{Overlong, clip_scores, penalize_missing_eos, penalize_overlong};
use crate::rlhf::{RunningMoments, ScoreNormalizer};
use crate::roles::{Roles, Sequence};

/// Samples of the reference that fix the scale of scores.
pub const REFERENCE_SAMPLES: usize = 256;

/// Normalised, clipped, and less the penalties: `[B]` → `[B]`.
///
/// # Errors
/// If there is not a score to each sequence.
pub fn shape(
    config: &Ppo,
    normalizer: &ScoreNormalizer,
    sequences: &[Sequence],
    raw: &[f32],
) -> Result<Vec<f64>> {
    let keys = &config.scores;
    let mut scores = normalizer.normalize(raw);
    if let Some(limit) = keys.score_clip {
        scores = clip_scores(&scores, limit)?;
    }
    if let Some(penalty) = keys.missing_eos_penalty {
        let finished: Vec<bool> = sequences.iter().map(|s| s.finished).collect();
        scores = penalize_missing_eos(&scores, &finished, penalty)?;
    }
    if keys.overlong_buffer > 0 {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.log_probs.len()).collect();
        let overlong = Overlong {
            limit: config.generation.max_new_tokens,
            buffer: keys.overlong_buffer,
            penalty: keys.overlong_penalty,
        };
        scores = penalize_overlong(&scores, &lengths, overlong)?;
    }
    Ok(scores)
}

/// The scale that scores are brought to, measured on the reference's samples where the configuration asks for it.
///
/// # Errors
/// If the samples cannot be drawn or scored, or all score alike.
pub fn normalizer(
    config: &Ppo,
    roles: &Roles,
    sampler: &Sampler,
    prompts: &[Prompt],
    seed: u64,
) -> Result<ScoreNormalizer> {
    match config.scores.score_normalization {
        ScoreNormalization::None => Ok(ScoreNormalizer::None),
        ScoreNormalization::Running => Ok(ScoreNormalizer::Running(RunningMoments::default())),
        ScoreNormalization::Reference => {
            let prompts: Vec<_> = reference_prompts(prompts.len(), seed)
                .into_iter()
                .map(|i| (i as u64, &prompts[i]))
                .collect();
            let reference = roles.reference.as_ref();
            let reference = reference.context("reference samples without a reference")?;
            let mut scores = Scores::default();
            for run in sampler.runs(&prompts) {
                let samples = sampler.sample_all(reference, run, Purpose::Split)?;
                scores.extend(rewards::score(
                    config,
                    &roles.reward,
                    sampler,
                    run,
                    &samples,
                )?);
            }
            ScoreNormalizer::from_reference(&scores.total).with_context(|| {
                format!(
                    "ppo.score_normalization = \"reference\": {} answers of the reference give no scale of scores; set it to \
                     \"running\" or \"none\"",
                    scores.total.len()
                )
            })
        }
    }
}

/// Which of `count` prompts the reference answers.
fn reference_prompts(count: usize, seed: u64) -> Vec<usize> {
    let mut chosen = Key::new(seed, Purpose::Split).permutation(0, count);
    chosen.truncate(REFERENCE_SAMPLES);
    chosen
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

    fn sequence(tokens: usize, finished: bool) -> Sequence {
        Sequence {
            key: 0,
            sample: 0,
            ids: vec![1; tokens + 1],
            generated: std::iter::once(1..tokens + 1).collect(),
            log_probs: vec![0.0; tokens],
            whole_log_probs: Vec::new(),
            entropies: Vec::new(),
            kept: vec![None; tokens],
            finished,
            states: None,
        }
    }

    /// By hand: (6 − 1) / 2 = 2.5 is clipped to 2, (0 − 1) / 2 = −0.5 is not. Of at most 8 tokens the last 4 cost ¼ of 2 each; not to
    /// end costs 3.
    #[test]
    fn scores_are_scaled_clipped_and_penalised_in_this_order() {
        let mut config = Ppo::default();
        config.generation.max_new_tokens = 8;
        config.scores.score_clip = Some(2.0);
        config.scores.missing_eos_penalty = Some(3.0);
        config.scores.overlong_buffer = 4;
        config.scores.overlong_penalty = 2.0;
        let normalizer = ScoreNormalizer::Fixed {
            mean: 1.0,
            std: 2.0,
        };
        let sequences = [sequence(4, true), sequence(5, true), sequence(8, false)];
        let found = shape(&config, &normalizer, &sequences, &[6.0, 0.0, 6.0]).unwrap();
        for (found, expected) in found.iter().zip([2.0, -1.0, 2.0 - 3.0 - 2.0]) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
    }
}
