//! Results of one evaluation: means with their standard errors, and each prompt's scores, which
//! later evaluations are compared with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::measures::opposed;
use crate::train::metrics::{Metrics, names};
use crate::train::summary::Estimate;

/// Results of one evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalResults {
    /// Means by metric name.
    numbers: BTreeMap<String, Estimate>,
    scores: PromptScores,
    /// The first prompts' completions, for the closing table.
    completions: Vec<String>,
}

/// Scores of each prompt's completion by the reward and by the judge, as the bits of an `f32`: JSON
/// has no NaN.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PromptScores {
    reward: Vec<u32>,
    judge: Vec<u32>,
}

impl EvalResults {
    /// Adds the mean of independent values.
    pub fn add(&mut self, name: &str, values: &[f64]) {
        self.set(name, Estimate::of(values));
    }

    /// Adds a number without a standard error, if it is defined.
    pub fn add_single(&mut self, name: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.set(name, value.into());
        }
    }

    /// Adds a mean.
    pub fn set(&mut self, name: &str, number: Estimate) {
        self.numbers.insert(name.to_owned(), number);
    }

    /// Sets the scores of each prompt's completion.
    pub fn set_scores(&mut self, reward: &[f32], judge: &[f32]) {
        let bits = |scores: &[f32]| scores.iter().map(|score| score.to_bits()).collect();
        self.scores = PromptScores {
            reward: bits(reward),
            judge: bits(judge),
        };
    }

    /// Sets the completions that the closing table shows.
    pub fn set_completions(&mut self, completions: Vec<String>) {
        self.completions = completions;
    }

    /// Adds length drift and judge disagreement, which compare with `before`, the evaluation before
    /// training; `None` compares with itself.
    pub fn compare_with(&mut self, before: Option<&Self>) {
        let length = |results: &Self| Some(results.number(names::EVAL_LENGTH_MEAN)?.mean);
        let (now, then) = (length(self), length(before.unwrap_or(self)));
        let drift = now.zip(then).map(|(now, then)| now / then);
        let changes = |of: fn(&PromptScores) -> &[u32]| -> Vec<f32> {
            let now = of(&self.scores).iter();
            let then = of(&before.unwrap_or(self).scores).iter();
            let change = |(now, then): (&u32, &u32)| f32::from_bits(*now) - f32::from_bits(*then);
            now.zip(then).map(change).collect()
        };
        let disagreement = opposed(&changes(|s| &s.reward), &changes(|s| &s.judge));
        self.add_single(names::EVAL_LENGTH_DRIFT, drift);
        self.add_single(names::EVAL_JUDGE_DISAGREEMENT, disagreement);
    }

    /// Names of all metrics.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.numbers.keys().map(String::as_str)
    }

    /// The mean of a metric.
    pub fn number(&self, name: &str) -> Option<Estimate> {
        self.numbers.get(name).copied()
    }

    /// The first prompts' completions.
    pub fn completions(&self) -> &[String] {
        &self.completions
    }

    /// Sets all means as metrics.
    pub fn write(&self, metrics: &mut Metrics) {
        for (name, number) in &self.numbers {
            metrics.set(name, number.mean);
        }
    }

    /// The main metrics in one line, for the terminal.
    pub fn line(&self) -> String {
        let mean = |name: &&str| {
            self.numbers
                .get(*name)
                .map(|n| format!("{} {:.3}", name.trim_start_matches("eval/"), n.mean))
        };
        // The word sets them apart from the numbers of an iteration's rollout.
        let means: Vec<String> = [
            names::EVAL_SCORE,
            names::EVAL_JUDGE_SCORE,
            names::EVAL_KL,
            names::EVAL_EOS_FRACTION,
            names::EVAL_LENGTH_MEAN,
        ]
        .iter()
        .filter_map(mean)
        .collect();
        format!("eval {}", means.join(", "))
    }

    /// The means by metric name.
    pub fn summary(&self) -> Map<String, Value> {
        self.numbers
            .iter()
            .map(|(name, number)| (name.clone(), Value::from(number.mean)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_that_are_not_finite_survive_serialisation() {
        let scores = [vec![f64::NAN, 1.0], vec![f64::INFINITY], vec![2.0, 4.0]];
        let numbers = ["nan", "infinite", "finite"].map(str::to_owned);
        let results = EvalResults {
            numbers: numbers
                .into_iter()
                .zip(scores.iter().map(|s| Estimate::of(s)))
                .collect(),
            ..EvalResults::default()
        };
        let text = serde_json::to_string(&results).unwrap();
        let read: EvalResults = serde_json::from_str(&text).unwrap();
        assert!(read.numbers["nan"].mean.is_nan(), "{text}");
        assert!(read.numbers["nan"].standard_error.unwrap().is_nan());
        for name in ["infinite", "finite"] {
            assert_eq!(read.numbers[name], results.numbers[name], "{text}");
        }
    }

    /// Four prompts: the reward's score moved against the judge's on two, with it on one, not at
    /// all on one. Mean length 4, then 6.
    #[test]
    fn drift_and_disagreement_compare_with_the_start() {
        let results = |lengths: &[f64], reward: &[f32], judge: &[f32]| {
            let mut results = EvalResults::default();
            results.add(names::EVAL_LENGTH_MEAN, lengths);
            results.set_scores(reward, judge);
            results
        };
        let mut before = results(&[3.0, 5.0], &[0.1, 0.2, 0.3, 0.4], &[1.0, 2.0, 3.0, 4.0]);
        before.compare_with(None);
        let mean = |results: &EvalResults, name: &str| results.number(name).map(|n| n.mean);
        assert_eq!(mean(&before, names::EVAL_LENGTH_DRIFT), Some(1.0));
        assert_eq!(mean(&before, names::EVAL_JUDGE_DISAGREEMENT), Some(0.0));

        // Read back from a checkpoint.
        let text = serde_json::to_string(&before).unwrap();
        let read: EvalResults = serde_json::from_str(&text).unwrap();
        assert_eq!(read, before);
        let mut after = results(&[6.0, 6.0], &[0.2, 0.1, 0.5, 0.4], &[0.5, 2.5, 3.5, 9.0]);
        after.compare_with(Some(&read));
        assert_eq!(mean(&after, names::EVAL_LENGTH_DRIFT), Some(1.5));
        assert_eq!(mean(&after, names::EVAL_JUDGE_DISAGREEMENT), Some(0.5));

        // Without a judge there is nothing to disagree with.
        let mut alone = results(&[1.0], &[0.1], &[]);
        alone.compare_with(None);
        assert_eq!(mean(&alone, names::EVAL_JUDGE_DISAGREEMENT), None);
    }
}
