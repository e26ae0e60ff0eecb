//! What one evaluation found: means with their standard errors, and what later ones are held against.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::measures::opposed;
use crate::train::float;
use crate::train::metrics::{Metrics, names};
use crate::train::summary::Estimate;

/// Means with their standard errors by metric name, each prompt's scores, and the first completions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    numbers: BTreeMap<String, Number>,
    #[serde(default)]
    scores: Scores,
    completions: Vec<String>,
}

/// What reward model and judge say of each prompt's completion. As bits, for JSON has no NaN.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Scores {
    reward: Vec<u32>,
    judge: Vec<u32>,
}

/// A mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Number {
    /// The mean.
    #[serde(with = "float")]
    pub mean: f64,
    /// Its standard error; none of a number that is not an average.
    #[serde(with = "float::option")]
    pub standard_error: Option<f64>,
}

impl Number {
    /// Mean and standard error of independent values; with one alone the error is unknown.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Self {
            mean,
            standard_error: (n > 1.0).then(|| (variance / n).sqrt()),
        }
    }
}

impl Number {
    /// Whether `other` is above it by more than `bound` times the combined standard error of the two; not if one of those is unknown.
    pub fn is_below(self, other: Self, bound: f64) -> bool {
        let errors = self.standard_error.zip(other.standard_error);
        errors.is_some_and(|(a, b)| other.mean - self.mean > bound * a.hypot(b))
    }

    /// As the tables have it.
    pub fn shown(self) -> String {
        Estimate::from(self).to_string()
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
    /// Adds a mean of values.
    pub fn add(&mut self, name: &str, values: &[f64]) {
        self.set_number(name, Number::of(values));
    }

    /// Adds a number that is no average of independent values, unless it is not defined.
    pub fn add_single(&mut self, name: &str, value: Option<f64>) {
        if let Some(mean) = value {
            let standard_error = None;
            self.set_number(
                name,
                Number {
                    mean,
                    standard_error,
                },
            );
        }
    }

    /// Adds a number as it is.
    pub fn set_number(&mut self, name: &str, number: Number) {
        self.numbers.insert(name.to_owned(), number);
    }

    /// Notes each prompt's scores.
    pub fn set_scores(&mut self, reward: &[f32], judge: &[f32]) {
        let bits = |scores: &[f32]| scores.iter().map(|score| score.to_bits()).collect();
        self.scores = Scores {
            reward: bits(reward),
            judge: bits(judge),
        };
    }

    /// Notes the first completions.
    pub fn set_completions(&mut self, completions: Vec<String>) {
        self.completions = completions;
    }

    /// Adds what is measured against `before`, the evaluation at the start; that one against itself.
    pub fn hold_against(&mut self, before: Option<&Self>) {
        let length = |measured: &Self| Some(measured.number(names::EVAL_LENGTH_MEAN)?.mean);
        let (now, then) = (length(self), length(before.unwrap_or(self)));
        let drift = now.zip(then).map(|(now, then)| now / then);
        let changes = |of: fn(&Scores) -> &[u32]| -> Vec<f32> {
            let now = of(&self.scores).iter();
            let then = of(&before.unwrap_or(self).scores).iter();
            let change = |(now, then): (&u32, &u32)| f32::from_bits(*now) - f32::from_bits(*then);
            now.zip(then).map(change).collect()
        };
        let disagreement = opposed(&changes(|s| &s.reward), &changes(|s| &s.judge));
        self.add_single(names::EVAL_LENGTH_DRIFT, drift);
        self.add_single(names::EVAL_JUDGE_DISAGREEMENT, disagreement);
    }

    /// The names of all measures.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.numbers.keys().map(String::as_str)
    }

    /// The mean of this name.
    pub fn number(&self, name: &str) -> Option<Number> {
        self.numbers.get(name).copied()
    }

    /// The first completions.
    pub fn completions(&self) -> &[String] {
        &self.completions
    }

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
            ..Measured::default()
        };
        let text = serde_json::to_string(&measured).unwrap();
        let read: Measured = serde_json::from_str(&text).unwrap();
        assert!(read.numbers["nan"].mean.is_nan(), "{text}");
        assert!(read.numbers["nan"].standard_error.unwrap().is_nan());
        for name in ["infinite", "finite"] {
            assert_eq!(read.numbers[name], measured.numbers[name], "{text}");
        }
    }

    /// Four prompts: two moved the other way than the judge's scores, one the same way, one not at all. Mean length 4, then 6.
    #[test]
    fn what_is_held_against_the_start() {
        let measured = |lengths: &[f64], reward: &[f32], judge: &[f32]| {
            let mut measured = Measured::default();
            measured.add(names::EVAL_LENGTH_MEAN, lengths);
            measured.set_scores(reward, judge);
            measured
        };
        let mut before = measured(&[3.0, 5.0], &[0.1, 0.2, 0.3, 0.4], &[1.0, 2.0, 3.0, 4.0]);
        before.hold_against(None);
        let mean = |measured: &Measured, name: &str| measured.number(name).map(|n| n.mean);
        assert_eq!(mean(&before, names::EVAL_LENGTH_DRIFT), Some(1.0));
        assert_eq!(mean(&before, names::EVAL_JUDGE_DISAGREEMENT), Some(0.0));

        // As it comes back from a checkpoint.
        let text = serde_json::to_string(&before).unwrap();
        let read: Measured = serde_json::from_str(&text).unwrap();
        assert_eq!(read, before);
        let mut after = measured(&[6.0, 6.0], &[0.2, 0.1, 0.5, 0.4], &[0.5, 2.5, 3.5, 9.0]);
        after.hold_against(Some(&read));
        assert_eq!(mean(&after, names::EVAL_LENGTH_DRIFT), Some(1.5));
        assert_eq!(mean(&after, names::EVAL_JUDGE_DISAGREEMENT), Some(0.5));

        // Without a judge there is nothing to disagree with.
        let mut alone = measured(&[1.0], &[0.1], &[]);
        alone.hold_against(None);
        assert_eq!(mean(&alone, names::EVAL_JUDGE_DISAGREEMENT), None);
    }
}
