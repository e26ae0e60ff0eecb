//! Held-out prompts, answered with the same seed each time and measured: score, judge, KL, length, variety, repetition, entropy,
//! valence. And whether the reward is still earned.

mod measured;
mod measures;
mod table;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use rollout::random::Purpose;
use serde::Serialize;

use super::rewards;
use super::rollouts::Sampler;
use super::setup;
use crate::config::Ppo;
use crate::data::example::Prompt;
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::reward::{Lexicon, RewardModel, Scored, Valence, repeated};
use crate::rlhf::stats::mean;
use crate::roles::{self, Roles};
use crate::stages::misfits::Misfits;
use crate::train::metrics::names;
use measures::{distinct_2, rank_correlation};

pub use measured::Measured;
pub use table::table;
pub use watch::{Verdict, Watch};

/// Completions that the closing table shows.
const SHOWN: usize = 3;

/// Tokens of the runs whose repetition is measured.
const REPEATED_RUN: usize = 4;

/// What an evaluation needs.
pub struct Evaluator<'a> {
    prompts: Vec<Prompt>,
    reference: &'a Decoder,
    judge: Option<&'a RewardModel>,
    lexicon: Option<Lexicon>,
    config: &'a Ppo,
}

/// One line of `samples.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    step: u64,
    index: usize,
    prompt: String,
    completion: String,
    score: f32,
    /// What each component made of it, before its weight.
    rewards: BTreeMap<String, f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    judge_score: Option<f32>,
    kl: f64,
    entropy: f64,
    seq_rep_4: f64,
    tokens: usize,
    finished: bool,
}

impl<'a> Evaluator<'a> {
    /// Reads prompts and lexicon, and takes reference and judge; `None` when the configuration has no held-out prompts.
    ///
    /// # Errors
    /// If prompts or lexicon cannot be read, or the reference was not loaded.
    pub fn load(
        config: &'a Ppo,
        tokenizer: &Tokenizer,
        roles: &'a Roles,
        misfits: &mut Misfits,
    ) -> Result<Option<Self>> {
        let Some(file) = &config.eval_prompts else {
            return Ok(None);
        };
        let reference = roles.reference.as_ref();
        let reference = reference.context("an evaluation without a reference")?;
        let (judge, file) = (roles.judge.as_ref(), (file.as_path(), "eval_prompts"));
        let mut prompts = setup::prompts(tokenizer, config, roles, judge, file, misfits)?;
        prompts.truncate(config.evaluation.eval_samples);
        let lexicon = config
            .evaluation
            .lexicon
            .as_deref()
            .map(Lexicon::read)
            .transpose()?;
        Ok(Some(Self {
            prompts,
            reference,
            judge,
            lexicon,
            config,
        }))
    }

    /// Answers all prompts and measures the answers.
    ///
    /// # Errors
    /// If the computation fails.
    pub fn measure(
        &self,
        sampler: &Sampler,
        roles: &Roles,
        step: u64,
    ) -> Result<(Measured, Vec<Sample>)> {
        let prompts: Vec<_> = (0..).zip(&self.prompts).collect();
        let mut samples = Vec::with_capacity(prompts.len());
        for run in sampler.runs(&prompts) {
            samples.extend(self.answer(sampler, roles, run, step)?);
        }
        Ok((self.summarise(&samples), samples))
    }

    /// Answers these prompts and scores the answers; what generation kept of them is gone afterwards.
    fn answer(
        &self,
        sampler: &Sampler,
        roles: &Roles,
        prompts: &[(u64, &Prompt)],
        step: u64,
    ) -> Result<Vec<Sample>> {
        let sequences = sampler.sample_all(&roles.actor, prompts, Purpose::Evaluation)?;
        let limit = self.config.training.micro_batch_tokens;
        let temperature = self.config.generation.temperature as f32;
        let policy = roles::token_scores(&roles.actor, &sequences, temperature, limit)?;
        let reference = roles::whole_log_probs(self.reference, &sequences, temperature, limit)?;
        let scores = rewards::score(self.config, &roles.reward, sampler, prompts, &sequences)?;
        let known = sequences.iter().map(|s| (&s.ids[..], s.states.as_ref()));
        let known: Vec<Scored> = known.collect();
        let judge = self.judge.map(|judge| judge.score_kept(&known, limit));
        let judge = judge.transpose()?;
        let mut at = 0;
        let mut samples = Vec::with_capacity(sequences.len());
        let asked = prompts.iter().zip(&sequences);
        for (index, ((key, prompt), sequence)) in asked.enumerate() {
            let tokens = at..at + sequence.log_probs.len();
            at = tokens.end;
            let kl = policy.whole_log_probs[tokens.clone()]
                .iter()
                .zip(&reference[tokens.clone()])
                .map(|(p, r)| f64::from(p - r))
                .sum();
            samples.push(Sample {
                step,
                index: *key as usize,
                prompt: prompt.text.clone(),
                completion: sampler.text(sequence)?,
                score: scores.total[index],
                rewards: scores.of(index).collect(),
                judge_score: judge.as_ref().map(|judge| judge[index]),
                kl,
                entropy: mean(&policy.entropy[tokens.clone()]),
                seq_rep_4: repeated(&sequence.response(), REPEATED_RUN),
                tokens: tokens.len(),
                finished: sequence.finished,
            });
        }
        Ok(samples)
    }

    fn summarise(&self, samples: &[Sample]) -> Measured {
        let mut measured = Measured::default();
        let each = |of: &dyn Fn(&Sample) -> f64| -> Vec<f64> { samples.iter().map(of).collect() };
        measured.add(names::EVAL_SCORE, &each(&|s| f64::from(s.score)));
        let components: BTreeSet<&String> = samples.iter().flat_map(|s| s.rewards.keys()).collect();
        for name in components {
            let values = each(&|s| {
                s.rewards
                    .get(name)
                    .map_or(f64::NAN, |&score| f64::from(score))
            });
            measured.add(&format!("{}{name}", names::EVAL_REWARD), &values);
        }
        let scores: Vec<f32> = samples.iter().map(|s| s.score).collect();
        let judge: Vec<f32> = samples.iter().filter_map(|s| s.judge_score).collect();
        if self.judge.is_some() {
            let values: Vec<f64> = judge.iter().copied().map(f64::from).collect();
            measured.add(names::EVAL_JUDGE_SCORE, &values);
            let correlation = rank_correlation(&scores, &judge);
            measured.add_single(names::EVAL_JUDGE_CORRELATION, correlation);
        }
        measured.set_scores(&scores, &judge);
        if let Some(lexicon) = &self.lexicon {
            let valence = |of: fn(&Valence) -> f64| {
                let valences = samples.iter().map(|s| lexicon.valence(&s.completion));
                valences.map(|v| of(&v)).collect::<Vec<_>>()
            };
            measured.add(names::EVAL_VALENCE_MEAN, &valence(Valence::per_word));
            measured.add(names::EVAL_VALENCE_SUM, &valence(|v| v.sum));
        }
        measured.add(names::EVAL_KL, &each(&|s| s.kl));
        let finished = each(&|s| f64::from(u8::from(s.finished)));
        measured.add(names::EVAL_EOS_FRACTION, &finished);
        measured.add(names::EVAL_LENGTH_MEAN, &each(&|s| s.tokens as f64));
        measured.add(names::EVAL_SEQ_REP_4, &each(&|s| s.seq_rep_4));
        let tokens: usize = samples.iter().map(|s| s.tokens).sum();
        let entropy: f64 = samples.iter().map(|s| s.entropy * s.tokens as f64).sum();
        measured.add_single(names::EVAL_ENTROPY, Some(entropy / tokens as f64));
        let distinct = distinct_2(samples.iter().map(|s| s.completion.as_str()));
        measured.add_single(names::EVAL_DISTINCT_2, Some(distinct));
        let shown = samples.iter().take(SHOWN);
        measured.set_completions(shown.map(|s| s.completion.trim().to_owned()).collect());
        measured
    }

    /// The prompts in order.
    fn prompts(&self) -> &[Prompt] {
        &self.prompts
    }
}
