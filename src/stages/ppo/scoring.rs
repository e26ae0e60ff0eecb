//! Sequences → scores: completions with their prompts' records go to the reward components.

use anyhow::{Result, bail};

use super::sampler::Sampler;
use crate::config::Ppo;
use crate::data::example::Prompt;
use crate::reward::{CompletionScores, RewardBatch, RewardInput, Rewards};
use crate::roles::Sequence;
use crate::terminal::Phase;

/// Number of a prompt's characters in an error message.
const SHOWN: usize = 80;

/// Scores the completions `sequences` of `prompts`. A sequence belongs to the prompt of the same
/// key, and sequences are in the order of their prompts.
///
/// # Errors
/// If a completion cannot be decoded, a reward component fails, or a score is not finite.
pub fn score(
    config: &Ppo,
    rewards: &Rewards,
    sampler: &Sampler,
    prompts: &[(u64, &Prompt)],
    sequences: &[Sequence],
) -> Result<CompletionScores> {
    let _phase = Phase::begin(format!("scoring {} samples", sequences.len()));
    let texts: Vec<String> = sequences
        .iter()
        .map(|sequence| sampler.text(sequence))
        .collect::<Result<_>>()?;
    let mut prompts = prompts.iter().copied().peekable();
    let completions = sequences.iter().zip(&texts).filter_map(|(sequence, text)| {
        while prompts.next_if(|(key, _)| *key != sequence.key).is_some() {}
        let (_, prompt) = prompts.peek()?;
        Some(RewardInput {
            prompt: &prompt.text,
            text,
            ids: &sequence.ids,
            states: sequence.states.as_ref(),
            response: sequence.response(),
            fields: &prompt.fields,
        })
    });
    let completions: Vec<RewardInput> = completions.collect();
    anyhow::ensure!(
        completions.len() == sequences.len(),
        "sequences are not in the order of their prompts"
    );
    let scores = rewards.score(&RewardBatch {
        completions: &completions,
        pass_tokens: config.training.micro_batch_tokens,
    })?;
    check_finite(&scores, sequences, &completions)?;
    Ok(scores)
}

/// Fails if a score is not finite: it would reach every advantage of its batch.
fn check_finite(
    scores: &CompletionScores,
    sequences: &[Sequence],
    completions: &[RewardInput],
) -> Result<()> {
    let total = ("the weighted sum of rewards".to_owned(), &scores.total);
    let components = scores.components.iter();
    let components = components.map(|(name, of)| (format!("reward `{name}`"), of));
    for (name, of) in components.chain([total]) {
        if let Some(index) = of.iter().position(|score| !score.is_finite()) {
            let prompt: String = completions[index].prompt.chars().take(SHOWN).collect();
            bail!(
                "{name} is {} for sample {} of the prompt {prompt:?}; it must be a finite number: \
                 the reward model's weights are damaged, or a weight is too large",
                of[index],
                sequences[index].sample
            );
        }
    }
    Ok(())
}
