//! Checks of the keys of each type: ranges, combinations, and patterns that compile.

use super::super::check::Keys;
use super::kinds::{
    ClassifierReward, EnsembleReward, HttpReward, LONGEST_BACKOFF, LengthReward, RewardKind,
};
use crate::rlhf::ensemble::Combine;

impl RewardKind {
    pub(super) fn check(&self, keys: &mut Keys<'_, '_>) {
        match self {
            // The path was filled or reported before.
            Self::Model(_) => {}
            Self::Ensemble(ensemble) => ensemble.check(keys),
            Self::Classifier(classifier) => classifier.check(keys),
            Self::Exact(exact) => {
                check_answer_key(&exact.answer_key, keys);
                check_extract(exact.extract.as_deref(), keys);
                check_outcomes(exact.pass, exact.fail, keys);
            }
            Self::Numeric(numeric) => {
                check_answer_key(&numeric.answer_key, keys);
                check_extract(numeric.extract.as_deref(), keys);
                keys.not_negative("tolerance", numeric.tolerance, "1e-6 is usual");
                check_outcomes(numeric.pass, numeric.fail, keys);
            }
            Self::Regex(regex) => {
                match regex.pattern.is_empty() {
                    true => keys.missing("pattern", "for example pattern = \"^Yes\\\\b\""),
                    false => check_pattern("pattern", &regex.pattern, keys),
                }
                check_outcomes(regex.pass, regex.fail, keys);
            }
            Self::Length(length) => length.check(keys),
            Self::Json(json) => {
                check_extract(json.extract.as_deref(), keys);
                check_outcomes(json.pass, json.fail, keys);
            }
            Self::Repetition(repetition) => {
                keys.at_least("ngram", repetition.ngram, 1, "3 is usual");
            }
            Self::Program(program) => {
                if program.command.first().is_none_or(String::is_empty) {
                    let mend =
                        "name the program, for example command = [\"python3\", \"reward.py\"]";
                    keys.missing("command", mend);
                }
                keys.above(
                    "timeout_seconds",
                    program.timeout_seconds,
                    0.0,
                    "60 is usual",
                );
            }
            Self::Http(http) => http.check(keys),
        }
    }
}

impl EnsembleReward {
    fn check(&self, keys: &mut Keys<'_, '_>) {
        match self.paths.len() {
            0 => keys.missing("paths", "name the reward models' folders, two at least"),
            1 => keys.wrong(
                "paths",
                "one folder",
                "must be two at least; for one reward model set type = \"model\"",
            ),
            _ => {}
        }
        match (self.combine, self.deviations) {
            (Combine::MeanMinusDeviation, Some(k)) => {
                keys.not_negative("deviations", k, "1.0 is usual");
            }
            (_, Some(k)) => keys.wrong(
                "deviations",
                k,
                "has no effect without combine = \"mean_minus_deviation\"; set that, or remove \
                 this key",
            ),
            (_, None) => {}
        }
    }
}

impl ClassifierReward {
    fn check(&self, keys: &mut Keys<'_, '_>) {
        if self.path.as_os_str().is_empty() {
            keys.missing(
                "path",
                "name the folder of a BERT, DeBERTa-v2 or ModernBERT classifier",
            );
        }
        let mend = "a word needs room between the special tokens; remove it for the model's own";
        keys.at_least("max_length", self.max_length.unwrap_or(8), 8, mend);
    }
}

impl LengthReward {
    fn check(&self, keys: &mut Keys<'_, '_>) {
        match (self.min, self.max) {
            (None, None) => keys.missing("max", "set min or max"),
            (Some(min), Some(max)) if min > max => keys.wrong(
                "min",
                min,
                format!("is above max = {max}; no completion could pass"),
            ),
            _ => {}
        }
        check_outcomes(self.pass, self.fail, keys);
    }
}

impl HttpReward {
    fn check(&self, keys: &mut Keys<'_, '_>) {
        let known = ["http://", "https://"];
        match self.url.is_empty() {
            true => keys.missing("url", "for example url = \"http://localhost:8000/score\""),
            false if !known.iter().any(|scheme| self.url.starts_with(scheme)) => keys.wrong(
                "url",
                format!("\"{}\"", self.url),
                "must start with http:// or https://",
            ),
            false => {}
        }
        keys.at_least("batch_size", self.batch_size, 1, "64 is usual");
        keys.above("timeout_seconds", self.timeout_seconds, 0.0, "30 is usual");
        keys.between(
            "backoff_seconds",
            self.backoff_seconds,
            0.0,
            LONGEST_BACKOFF,
            "1 is usual",
        );
    }
}

fn check_answer_key(key: &str, keys: &mut Keys<'_, '_>) {
    if key.is_empty() || key == "prompt" {
        let message = "must be the field of a prompt's record that holds the answer";
        keys.wrong("answer_key", format!("\"{key}\""), message);
    }
}

fn check_extract(pattern: Option<&str>, keys: &mut Keys<'_, '_>) {
    pattern
        .into_iter()
        .for_each(|pattern| check_pattern("extract", pattern, keys));
}

fn check_pattern(key: &str, pattern: &str, keys: &mut Keys<'_, '_>) {
    if let Err(error) = regex::Regex::new(pattern) {
        let error = error.to_string();
        let why = error.lines().last().unwrap_or_default();
        let why = why.trim_start_matches("error: ");
        let message = format!("is not a regular expression: {why}");
        keys.wrong(key, format!("\"{pattern}\""), message);
    }
}

fn check_outcomes(pass: f64, fail: f64, keys: &mut Keys<'_, '_>) {
    for (key, score) in [("pass", pass), ("fail", fail)] {
        // Scores are f32.
        if !(score as f32).is_finite() {
            keys.wrong(key, score, "must be finite");
        }
    }
    if pass == fail {
        let message = format!("equals fail ({fail}), so that all completions score alike");
        keys.wrong("pass", pass, message);
    }
}
