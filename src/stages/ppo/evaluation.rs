//! Held-out prompts, answered with the same seed each time and measured: score, judge, KL, length, variety, valence.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::Result;
use rollout::random::Purpose;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::rewards;
use super::rollouts::Sampler;
use super::state::State;
use crate::config::Ppo;
use crate::data::example::Prompt;
use crate::data::tokenizer::Tokenizer;
use crate::reward::{Lexicon, RewardModel, Valence};
use crate::roles::{self, Roles, load_judge};
use crate::stages::Context;
use crate::train::float;
use crate::train::metrics::{Metrics, names};
use crate::train::run_folder::StageFolder;
use crate::train::summary::{Estimate, Summary};

/// Completions that the closing table shows.
const SHOWN: usize = 3;

/// What an evaluation needs.
pub struct Evaluator<'a> {
    prompts: Vec<Prompt>,
    judge: Option<RewardModel>,
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
    tokens: usize,
    finished: bool,
}

/// Means with their standard errors by metric name, and the first completions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    numbers: BTreeMap<String, Number>,
    completions: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Number {
    #[serde(with = "float")]
    mean: f64,
    #[serde(with = "float::option")]
    standard_error: Option<f64>,
}

/// The measures in the order of the table, with what people call them.
const MEASURES: [(&str, &str); 8] = [
    (names::EVAL_SCORE, "reward model"),
    (names::EVAL_JUDGE_SCORE, "judge (never seen in training)"),
    (names::EVAL_VALENCE_MEAN, "valence a word"),
    (names::EVAL_VALENCE_SUM, "valence a completion"),
    (names::EVAL_KL, "KL a sequence"),
    (names::EVAL_DISTINCT_2, "distinct-2"),
    (names::EVAL_EOS_FRACTION, "finished"),
    (names::EVAL_LENGTH_MEAN, "tokens"),
];

impl<'a> Evaluator<'a> {
    /// Reads prompts, judge and lexicon; `None` when the configuration has no held-out prompts.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn load(
        context: &Context,
        config: &'a Ppo,
        tokenizer: &Tokenizer,
        roles: &Roles,
    ) -> Result<Option<Self>> {
        let Some(file) = &config.eval_prompts else {
            return Ok(None);
        };
        let mut prompts = super::prompts(tokenizer, config, roles, file, "eval_prompts")?;
        prompts.truncate(config.evaluation.eval_samples);
        let judge = config
            .judge_model
            .as_deref()
            .map(|folder| load_judge(&roles.actor, &config.from, folder, context.device))
            .transpose()?;
        let lexicon = config
            .evaluation
            .lexicon
            .as_deref()
            .map(Lexicon::read)
            .transpose()?;
        Ok(Some(Self {
            prompts,
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
        let prompts: Vec<_> = self
            .prompts
            .iter()
            .enumerate()
            .map(|(i, p)| (i as u64, p))
            .collect();
        let sequences = sampler.sample_all(&roles.actor, &prompts, Purpose::Evaluation)?;
        let limit = self.config.training.micro_batch_tokens;
        let temperature = self.config.generation.temperature as f32;
        let policy = roles::log_probs(&roles.actor, &sequences, temperature, limit)?.log_probs;
        let reference =
            roles::log_probs(&roles.reference, &sequences, temperature, limit)?.log_probs;
        let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
        let scores = rewards::score(self.config, &roles.reward, sampler, &prompts, &sequences)?;
        let judge = self
            .judge
            .as_ref()
            .map(|judge| judge.score(&ids, limit))
            .transpose()?;
        let mut at = 0;
        let mut samples = Vec::with_capacity(sequences.len());
        for (index, sequence) in sequences.iter().enumerate() {
            let tokens = at..at + sequence.log_probs.len();
            at = tokens.end;
            let kl = policy[tokens.clone()]
                .iter()
                .zip(&reference[tokens.clone()])
                .map(|(p, r)| f64::from(p - r))
                .sum();
            samples.push(Sample {
                step,
                index,
                prompt: self.prompts[index].text.clone(),
                completion: sampler.text(sequence)?,
                score: scores.total[index],
                rewards: scores
                    .components
                    .iter()
                    .map(|(name, scores)| (name.clone(), scores[index]))
                    .collect(),
                judge_score: judge.as_ref().map(|judge| judge[index]),
                kl,
                tokens: tokens.len(),
                finished: sequence.finished,
            });
        }
        Ok((self.summarise(&samples), samples))
    }

    fn summarise(&self, samples: &[Sample]) -> Measured {
        let mut numbers = BTreeMap::new();
        let mut add = |name: &str, values: Vec<f64>| {
            numbers.insert(name.to_owned(), Number::of(&values));
        };
        add(
            names::EVAL_SCORE,
            samples.iter().map(|s| f64::from(s.score)).collect(),
        );
        for name in samples
            .iter()
            .flat_map(|s| s.rewards.keys())
            .collect::<BTreeSet<_>>()
        {
            add(
                &format!("{}{name}", names::EVAL_REWARD),
                samples
                    .iter()
                    .filter_map(|s| s.rewards.get(name))
                    .map(|&score| f64::from(score))
                    .collect(),
            );
        }
        if self.judge.is_some() {
            add(
                names::EVAL_JUDGE_SCORE,
                samples
                    .iter()
                    .filter_map(|s| s.judge_score)
                    .map(f64::from)
                    .collect(),
            );
        }
        if let Some(lexicon) = &self.lexicon {
            let valences: Vec<Valence> = samples
                .iter()
                .map(|s| lexicon.valence(&s.completion))
                .collect();
            add(
                names::EVAL_VALENCE_MEAN,
                valences.iter().map(Valence::per_word).collect(),
            );
            add(
                names::EVAL_VALENCE_SUM,
                valences.iter().map(|v| v.sum).collect(),
            );
        }
        add(names::EVAL_KL, samples.iter().map(|s| s.kl).collect());
        add(
            names::EVAL_EOS_FRACTION,
            samples
                .iter()
                .map(|s| f64::from(u8::from(s.finished)))
                .collect(),
        );
        add(
            names::EVAL_LENGTH_MEAN,
            samples.iter().map(|s| s.tokens as f64).collect(),
        );
        let distinct = Number {
            mean: distinct_2(samples),
            standard_error: None,
        };
        numbers.insert(names::EVAL_DISTINCT_2.to_owned(), distinct);
        let completions = samples
            .iter()
            .take(SHOWN)
            .map(|s| s.completion.trim().to_owned())
            .collect();
        Measured {
            numbers,
            completions,
        }
    }
}

/// Different pairs of neighbouring words as a share of all such pairs in the completions (Li et al. 2016, §5.1).
fn distinct_2(samples: &[Sample]) -> f64 {
    let words = |s: &'_ Sample| {
        s.completion
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let pairs: Vec<[String; 2]> = samples
        .iter()
        .flat_map(|s| {
            words(s)
                .windows(2)
                .map(|w| [w[0].clone(), w[1].clone()])
                .collect::<Vec<_>>()
        })
        .collect();
    let distinct: HashSet<&[String; 2]> = pairs.iter().collect();
    distinct.len() as f64 / pairs.len().max(1) as f64
}

impl Number {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Self {
            mean,
            standard_error: (n > 1.0).then(|| (variance / n).sqrt()),
        }
    }
}

impl From<Number> for Estimate {
    fn from(number: Number) -> Self {
        Self {
            mean: number.mean,
            standard_error: number.standard_error,
        }
    }
}

impl Measured {
    /// Sets every mean as a metric.
    pub fn write(&self, metrics: &mut Metrics) {
        for (name, number) in &self.numbers {
            metrics.set(name, number.mean);
        }
    }

    /// One line for the terminal.
    pub fn line(&self) -> String {
        let mean = |name: &&str| {
            self.numbers
                .get(*name)
                .map(|n| format!("{} {:.3}", name.trim_start_matches("eval/"), n.mean))
        };
        [
            names::EVAL_SCORE,
            names::EVAL_JUDGE_SCORE,
            names::EVAL_KL,
            names::EVAL_EOS_FRACTION,
            names::EVAL_LENGTH_MEAN,
        ]
        .iter()
        .filter_map(mean)
        .collect::<Vec<_>>()
        .join(", ")
    }

    /// The means by name.
    pub fn summary(&self) -> Map<String, Value> {
        self.numbers
            .iter()
            .map(|(name, number)| (name.clone(), Value::from(number.mean)))
            .collect()
    }
}

/// The closing table: what was learned, a few completions before and after, and where everything lies.
pub fn table(
    state: &State,
    evaluator: Option<&Evaluator>,
    folder: &StageFolder,
) -> Result<Summary> {
    let mut table = Summary::new("ppo");
    if let (Some(before), Some(after)) = (&state.before, &state.last) {
        let mut row = |name: &str, shown: &str| {
            let measured = |of: &Measured| of.numbers.get(name).copied();
            if let (Some(before), Some(after)) = (measured(before), measured(after)) {
                table.row(shown, before, after);
            }
        };
        let summed = evaluator.is_some_and(|e| !e.config.rewards.is_empty());
        for (name, shown) in MEASURES {
            let sum = summed && name == names::EVAL_SCORE;
            row(name, if sum { "score (weighted sum)" } else { shown });
        }
        for name in before.numbers.keys().filter(|_| summed) {
            if let Some(component) = name.strip_prefix(names::EVAL_REWARD) {
                row(name, &format!("reward {component}"));
            }
        }
        let prompts = evaluator.map_or(&[][..], |e| &e.prompts);
        for (prompt, (before, after)) in prompts
            .iter()
            .zip(before.completions.iter().zip(&after.completions))
        {
            table.note(&format!(
                "{}\n    before: {before}\n    after:  {after}",
                prompt.text
            ));
        }
    }
    table
        .text("iterations", "", &state.iteration.to_string())
        .path("policy", &folder.final_model())
        .path("samples", &folder.samples())
        .path("metrics", &folder.metrics());
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_that_are_not_finite_are_read_back() {
        let scores = [vec![f64::NAN, 1.0], vec![f64::INFINITY], vec![2.0, 4.0]];
        let numbers = ["nan", "infinite", "finite"].map(str::to_owned);
        let measured = Measured {
            numbers: numbers
                .into_iter()
                .zip(scores.iter().map(|s| Number::of(s)))
                .collect(),
            completions: Vec::new(),
        };
        let text = serde_json::to_string(&measured).unwrap();
        let read: Measured = serde_json::from_str(&text).unwrap();
        assert!(read.numbers["nan"].mean.is_nan(), "{text}");
        assert!(read.numbers["nan"].standard_error.unwrap().is_nan());
        for name in ["infinite", "finite"] {
            assert_eq!(read.numbers[name], measured.numbers[name], "{text}");
        }
    }
}
