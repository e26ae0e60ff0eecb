//! Sequences → scores: their texts and records, handed to all that scores.

use anyhow::{Result, bail};

use super::rollouts::Sampler;
use crate::config::Ppo;
use crate::data::example::Prompt;
use crate::reward::{Batch, Completion, Rewards, Scores};
use crate::roles::Sequence;
use crate::terminal::Phase;

/// Characters of a prompt that an error shows.
const SHOWN: usize = 80;

/// Scores what was generated from `prompts`, each known by the key that its sequences bear, in the prompts' order.
///
/// # Errors
/// If a completion cannot be decoded, or something that scores fails.
pub fn score(
    config: &Ppo,
    rewards: &Rewards,
    sampler: &Sampler,
    prompts: &[(u64, &Prompt)],
    sequences: &[Sequence],
) -> Result<Scores> {
    let _phase = Phase::begin(format!("scoring {} samples", sequences.len()));
    let texts: Vec<String> = sequences
        .iter()
        .map(|sequence| sampler.text(sequence))
        .collect::<Result<_>>()?;
    let mut prompts = prompts.iter().copied().peekable();
    let completions = sequences.iter().zip(&texts).filter_map(|(sequence, text)| {
        while prompts.next_if(|(key, _)| *key != sequence.key).is_some() {}
        let (_, prompt) = prompts.peek()?;
        Some(Completion {
            prompt: &prompt.text,
            text,
            ids: &sequence.ids,
            states: sequence.states.as_ref(),
            response: sequence.response(),
            fields: &prompt.fields,
        })
    });
    let completions: Vec<Completion> = completions.collect();
    anyhow::ensure!(
        completions.len() == sequences.len(),
        "sequences are not in the order of their prompts"
    );
    let scores = rewards.score(&Batch {
        completions: &completions,
        pass_tokens: config.training.micro_batch_tokens,
    })?;
    check_finite(&scores, sequences, &completions)?;
    Ok(scores)
}

/// A score that is no number would reach every advantage of its batch.
fn check_finite(scores: &Scores, sequences: &[Sequence], completions: &[Completion]) -> Result<()> {
    let total = ("the weighted sum of rewards".to_owned(), &scores.total);
    let components = scores.components.iter();
    let components = components.map(|(name, of)| (format!("reward `{name}`"), of));
    for (name, of) in components.chain([total]) {
        if let Some(index) = of.iter().position(|score| !score.is_finite()) {
            let prompt: String = completions[index].prompt.chars().take(SHOWN).collect();
            bail!(
                "{name} is {} for sample {} of the prompt {prompt:?}; it must be a finite number: the reward model's weights are \
                 damaged, or a weight is too large",
                of[index],
                sequences[index].sample
            );
        }
    }
    Ok(())
}
