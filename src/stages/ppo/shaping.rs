//! Scores → rewards of whole completions: normalised, clipped, less the penalties for a missing end
//! and for length.

use kernels::random::Key;

use crate::random::Purpose;
use anyhow::{Context as _, Result};

use super::sampler::Sampler;
use super::scoring;
use crate::config::{Ppo, ScoreNormalization};
use crate::data::example::Prompt;
use crate::reward::CompletionScores;
use crate::rlhf::score::{Overlong, clip_scores, penalize_missing_eos, penalize_overlong};
use crate::rlhf::{RunningMoments, ScoreNormalizer};
use crate::roles::{Experience, Roles};

/// Number of samples of the reference from which `score_normalization = "reference"` takes mean and
/// deviation.
pub const REFERENCE_SAMPLES: usize = 256;

/// The score of each completion, normalised, clipped, and less the penalties: `[B]`.
///
/// # Errors
/// If a setting is out of range.
pub fn shaped_scores(
    config: &Ppo,
    normalizer: &ScoreNormalizer,
    experience: &Experience,
) -> Result<Vec<f64>> {
    let (keys, sequences) = (&config.scores, experience.sequences());
    let mut scores = normalizer.normalize(&experience.scores().total);
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

/// The configured normaliser of scores; for `"reference"`, with mean and deviation of the
/// reference's samples.
///
/// # Errors
/// If the samples cannot be drawn or scored, or all scores are equal.
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
            let mut scores = CompletionScores::default();
            for run in sampler.runs(&prompts) {
                let samples = sampler.sample_all(reference, run, Purpose::Split)?;
                let reward = &roles.reward;
                scores.extend(scoring::score(config, reward, sampler, run, &samples)?);
            }
            ScoreNormalizer::from_reference(&scores.total).with_context(|| {
                format!(
                    "ppo.score_normalization = \"reference\": the scores of {} samples of the \
                     reference have no spread to normalise by; set it to \"running\" or \"none\"",
                    scores.total.len()
                )
            })
        }
    }
}

/// Indices of the prompts, of `count`, that the reference answers. The key of the first prompt's
/// samples comes from the entry that this order is drawn from, which [`Key::child`] advises
/// against. Another purpose would change the samples of every run, and samples do not show where
/// their key is from.
fn reference_prompts(count: usize, seed: u64) -> Vec<usize> {
    let mut chosen = Key::new(seed, Purpose::Split).permutation(0, count);
    chosen.truncate(REFERENCE_SAMPLES);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::Sequence;

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

    /// By hand: (6 − 1) / 2 = 2.5 is clipped to 2, (0 − 1) / 2 = −0.5 is not. Of at most 8 tokens
    /// the last 4 cost ¼ of 2 each; a missing end costs 3.
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
        let sequences = vec![sequence(4, true), sequence(5, true), sequence(8, false)];
        let scores = CompletionScores {
            total: vec![6.0, 0.0, 6.0],
            components: Vec::new(),
        };
        let experience = Experience::new(sequences, scores).unwrap();
        let found = shaped_scores(&config, &normalizer, &experience).unwrap();
        for (found, expected) in found.iter().zip([2.0, -1.0, 2.0 - 3.0 - 2.0]) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
    }
}
