//! Sequences → scores: their texts and records, handed to all that scores.

use anyhow::Result;

use super::rollouts::Sampler;
use crate::config::Ppo;
use crate::data::example::Prompt;
use crate::reward::{Batch, Completion, Rewards, Scores};
use crate::roles::Sequence;

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
    Ok(rewards.score(&Batch {
        completions: &completions,
        pass_tokens: config.training.micro_batch_tokens,
    })?)
}
