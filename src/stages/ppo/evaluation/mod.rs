//! Evaluations: held-out prompts, answered with the same seed each time, and measured by score,
//! judge, KL, length, variety, repetition, entropy and valence.

mod measures;
mod results;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Purpose;
use anyhow::{Context as _, Result};
use serde::Serialize;

use super::sampler::Sampler;
use super::scoring;
use super::setup;
use crate::config::Ppo;
use crate::data::example::Prompt;
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::reward::{IdsAndStates, Lexicon, RewardModel, Valence, repeated};
use crate::rlhf::stats::mean;
use crate::roles::{self, Experience, PromptUse, Roles};
use crate::stages::record_report::RecordReports;
use crate::train::metrics::names;
use measures::{distinct_2, rank_correlation};

pub use results::EvalResults;
pub use watch::{RewardWatch, Verdict};

/// Number of completions in the closing table.
const SHOWN: usize = 3;

/// Length in tokens of the n-grams of `eval/seq_rep_4`.
const REPEATED_NGRAM: usize = 4;

/// Held-out prompts and everything that measures their completions.
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
    /// Score of each reward component, before its weight.
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
    /// Reads prompts and lexicon; `None` if the configuration has no held-out prompts.
    ///
    /// # Errors
    /// If prompts or lexicon cannot be read, or the reference was not loaded.
    pub fn load(
        config: &'a Ppo,
        tokenizer: &Tokenizer,
        roles: &'a Roles,
        reports: &mut RecordReports,
    ) -> Result<Option<Self>> {
        if !config.evaluates() {
            return Ok(None);
        }
        let reference = roles.reference.as_ref();
        let reference = reference.context("an evaluation without a reference")?;
        let (judge, data) = (roles.judge.as_ref(), (&config.eval_prompts, "eval_prompts"));
        let prompts = PromptUse::Evaluation;
        let mut prompts = setup::prompts(tokenizer, config, roles, prompts, data, reports)?;
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

    /// Answers all held-out prompts and measures the answers.
    ///
    /// # Errors
    /// If the computation fails.
    pub fn measure(
        &self,
        sampler: &Sampler,
        roles: &Roles,
        step: u64,
    ) -> Result<(EvalResults, Vec<Sample>)> {
        let prompts: Vec<_> = (0..).zip(&self.prompts).collect();
        let mut samples = Vec::with_capacity(prompts.len());
        for run in sampler.runs(&prompts) {
            samples.extend(self.answer(sampler, roles, run, step)?);
        }
        Ok((self.summarise(&samples), samples))
    }

    /// Answers these prompts and measures each answer. Recorded states are dropped afterwards.
    fn answer(
        &self,
        sampler: &Sampler,
        roles: &Roles,
        prompts: &[(u64, &Prompt)],
        step: u64,
    ) -> Result<Vec<Sample>> {
        let (actor, reward) = (&roles.actor, &roles.reward);
        let sequences = sampler.sample_all(actor, prompts, Purpose::Evaluation)?;
        let limit = self.config.training.micro_batch_tokens;
        let temperature = self.config.generation.temperature as f32;
        let policy = roles::policy_log_probs(actor, &sequences, temperature, limit)?;
        let reference = roles::whole_log_probs(self.reference, &sequences, temperature, limit)?;
        let scores = scoring::score(self.config, reward, sampler, prompts, &sequences)?;
        let judge = self.judge.map(|judge| {
            let known = sequences.iter().map(|s| (&s.ids[..], s.states.as_ref()));
            judge.score_kept(&known.collect::<Vec<IdsAndStates>>(), limit)
        });
        let judge = judge.transpose()?;
        let experience = Experience::new(sequences, scores)?;
        let sample = |(index, (key, prompt)): (usize, &(u64, &Prompt))| {
            let (sequence, tokens) = (&experience.sequences()[index], experience.tokens_of(index));
            let log_probs = policy.whole_log_probs[tokens.clone()].iter();
            let log_ratios = log_probs.zip(&reference[tokens.clone()]);
            Ok(Sample {
                step,
                index: *key as usize,
                prompt: prompt.text.clone(),
                completion: sampler.text(sequence)?,
                score: experience.scores().total[index],
                rewards: experience.scores().of(index).collect(),
                judge_score: judge.as_ref().map(|judge| judge[index]),
                kl: log_ratios.map(|(p, r)| f64::from(p - r)).sum(),
                entropy: mean(&policy.entropies[tokens.clone()]),
                seq_rep_4: repeated(&sequence.response(), REPEATED_NGRAM),
                tokens: tokens.len(),
                finished: sequence.finished,
            })
        };
        prompts.iter().enumerate().map(sample).collect()
    }

    fn summarise(&self, samples: &[Sample]) -> EvalResults {
        let mut results = EvalResults::default();
        let each = |of: &dyn Fn(&Sample) -> f64| -> Vec<f64> { samples.iter().map(of).collect() };
        results.add(names::EVAL_SCORE, &each(&|s| f64::from(s.score)));
        let components: BTreeSet<&String> = samples.iter().flat_map(|s| s.rewards.keys()).collect();
        for name in components {
            let values = each(&|s| {
                s.rewards
                    .get(name)
                    .map_or(f64::NAN, |&score| f64::from(score))
            });
            results.add(&format!("{}{name}", names::EVAL_REWARD), &values);
        }
        let scores: Vec<f32> = samples.iter().map(|s| s.score).collect();
        let judge: Vec<f32> = samples.iter().filter_map(|s| s.judge_score).collect();
        if self.judge.is_some() {
            let values: Vec<f64> = judge.iter().copied().map(f64::from).collect();
            results.add(names::EVAL_JUDGE_SCORE, &values);
            let correlation = rank_correlation(&scores, &judge);
            results.add_single(names::EVAL_JUDGE_CORRELATION, correlation);
        }
        results.set_scores(&scores, &judge);
        if let Some(lexicon) = &self.lexicon {
            let valence = |of: fn(&Valence) -> f64| {
                let valences = samples.iter().map(|s| lexicon.valence(&s.completion));
                valences.map(|v| of(&v)).collect::<Vec<_>>()
            };
            results.add(names::EVAL_VALENCE_MEAN, &valence(Valence::per_word));
            results.add(names::EVAL_VALENCE_SUM, &valence(|v| v.sum));
        }
        results.add(names::EVAL_KL, &each(&|s| s.kl));
        let finished = each(&|s| f64::from(u8::from(s.finished)));
        results.add(names::EVAL_EOS_FRACTION, &finished);
        results.add(names::EVAL_LENGTH_MEAN, &each(&|s| s.tokens as f64));
        results.add(names::EVAL_SEQ_REP_4, &each(&|s| s.seq_rep_4));
        let tokens: usize = samples.iter().map(|s| s.tokens).sum();
        let entropy: f64 = samples.iter().map(|s| s.entropy * s.tokens as f64).sum();
        results.add_single(names::EVAL_ENTROPY, Some(entropy / tokens as f64));
        let distinct = distinct_2(samples.iter().map(|s| s.completion.as_str()));
        results.add_single(names::EVAL_DISTINCT_2, Some(distinct));
        let shown = samples.iter().take(SHOWN);
        results.set_completions(shown.map(|s| s.completion.trim().to_owned()).collect());
        results
    }

    /// The held-out prompts, in the order of their file.
    pub fn prompts(&self) -> &[Prompt] {
        &self.prompts
    }
}
