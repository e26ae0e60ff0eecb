//! The types of `[[ppo.rewards]]` and their keys.
//!
//! Rules score 1 where they hold and 0 where not; `pass` and `fail` set other scores. Patterns are those of the crate `regex`:
//! no look-around, no back-references, time linear in the text.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::ScoreAt;
use crate::rlhf::ensemble::Combine;

/// What a component scores by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum RewardKind {
    /// A reward model.
    Model(ModelReward),
    /// Several reward models.
    Ensemble(EnsembleReward),
    /// A frozen encoder with a classification head.
    Classifier(ClassifierReward),
    /// Whether the completion is the answer, letter by letter.
    Exact(ExactReward),
    /// Whether the completion's number is the answer.
    Numeric(NumericReward),
    /// Whether a pattern is found in the completion.
    Regex(RegexReward),
    /// Whether the completion's length lies in a window.
    Length(LengthReward),
    /// Whether the completion is JSON.
    Json(JsonReward),
    /// How much of the completion is said before.
    Repetition(RepetitionReward),
    /// A program of the user.
    Program(ProgramReward),
    /// An endpoint of the user.
    Http(HttpReward),
}

impl RewardKind {
    /// True for a rule, which reads the completion and the prompt's record alone.
    pub fn is_rule(&self) -> bool {
        match self {
            Self::Exact(_)
            | Self::Numeric(_)
            | Self::Regex(_)
            | Self::Length(_)
            | Self::Json(_)
            | Self::Repetition(_) => true,
            Self::Model(_)
            | Self::Ensemble(_)
            | Self::Classifier(_)
            | Self::Program(_)
            | Self::Http(_) => false,
        }
    }
}

/// `type = "model"`: the scalar head of a reward model at one token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelReward {
    /// The reward model's folder; when unset, the one that `[reward]` trains.
    pub path: PathBuf,
    /// The token at which its score is read; when unset, the folder says.
    pub score_at: Option<ScoreAt>,
}

/// `type = "ensemble"`: several reward models (Coste et al. 2023, "Reward model ensembles help mitigate overoptimization"). Train them
/// in runs of different `run.seed`: of one seed they start from the same head and read their pairs in the same order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnsembleReward {
    /// The reward models' folders, two at least. Required.
    pub paths: Vec<PathBuf>,
    /// How their scores become one.
    pub combine: Combine,
    /// With `combine = "mean_minus_deviation"`: how many standard deviations are subtracted; unset is 1.
    pub deviations: Option<f64>,
    /// The token at which their scores are read; when unset, each folder says.
    pub score_at: Option<ScoreAt>,
}

/// `type = "classifier"`: a BERT, DeBERTa-v2 or ModernBERT with a sequence classification head, run in `f32` on the CPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifierReward {
    /// A Hugging Face folder with `config.json`, safetensors and `tokenizer.json`. Required.
    pub path: PathBuf,
    /// The label whose output is the score: its name in `id2label`, or its index. May be left out if there is only one.
    pub label: Option<Label>,
    /// Whether the score is the label's logit or its probability.
    pub output: Output,
    /// What the classifier reads.
    pub reads: Reads,
    /// Longer texts are cut to this many tokens, special ones included; unset is the model's `max_position_embeddings`.
    pub max_length: Option<usize>,
}

/// A label of a classifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a label's name or its index")]
pub enum Label {
    /// By its place.
    Index(usize),
    /// By its name.
    Name(String),
}

/// What of a label is the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// The head's output.
    Logit,
    /// Softmax over the labels; the logistic function of a lone label, or of labels that do not exclude each other
    /// (`problem_type = "multi_label_classification"`).
    Probability,
}

/// What a classifier reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reads {
    /// The completion alone.
    Completion,
    /// Prompt and completion as one text.
    Text,
    /// Prompt and completion as a pair of texts, with the model's separator between them.
    Pair,
}

/// `type = "exact"`: whether the completion is the record's answer, both without spaces around them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExactReward {
    /// The field of the prompt's record that holds the answer.
    pub answer_key: String,
    /// Finds the answer in the completion: the last match's group 1, or all of it if the pattern has no group. Without a match
    /// the answer is wrong. Unset compares the whole completion.
    pub extract: Option<String>,
    /// Score of a right answer.
    pub pass: f64,
    /// Score of a wrong one.
    pub fail: f64,
}

/// `type = "numeric"`: whether the completion's last number is the record's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NumericReward {
    /// The field of the prompt's record that holds the answer: a number, or a text whose last number is meant.
    pub answer_key: String,
    /// Finds the text to look for the number in, as for `exact`. Unset looks in the whole completion.
    pub extract: Option<String>,
    /// Largest difference that still counts as right.
    pub tolerance: f64,
    /// Score of a right answer.
    pub pass: f64,
    /// Score of a wrong one, or of none.
    pub fail: f64,
}

/// `type = "regex"`: whether a pattern is found in the completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegexReward {
    /// The pattern; `^` and `$` tie it to the ends. Required.
    pub pattern: String,
    /// Score of a completion that has it.
    pub pass: f64,
    /// Score of one that has not.
    pub fail: f64,
}

/// `type = "length"`: whether the completion's length lies in a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LengthReward {
    /// What is counted.
    pub unit: Unit,
    /// Least length that passes; unset is 0. One of `min` and `max` is required.
    pub min: Option<usize>,
    /// Largest length that passes; unset is any.
    pub max: Option<usize>,
    /// Outside the window the score falls from `pass` to `fail` over this many units; 0 falls at once.
    pub margin: usize,
    /// Score inside the window.
    pub pass: f64,
    /// Score far outside.
    pub fail: f64,
}

/// What lengths and repetitions are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// The tokens that were generated, the one that ended the completion included.
    Tokens,
    /// What stands between white space.
    Words,
    /// Characters (Unicode scalar values).
    Characters,
}

/// `type = "json"`: whether the completion is one JSON value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JsonReward {
    /// Finds the JSON in the completion, as for `exact`. Unset takes the whole completion.
    pub extract: Option<String>,
    /// Keys that the value, an object then, must have.
    pub keys: Vec<String>,
    /// Score of valid JSON.
    pub pass: f64,
    /// Score of anything else.
    pub fail: f64,
}

/// `type = "repetition"`: minus the share of n-grams that stand earlier in the completion already, between −1 and 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RepetitionReward {
    /// n: how many neighbours make one n-gram.
    pub ngram: usize,
    /// Of what.
    pub unit: Unit,
}

/// `type = "program"`: a program that stays and answers one JSON line with another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramReward {
    /// The program and its arguments; no shell reads them. Required.
    pub command: Vec<String>,
    /// Longest wait for the scores of a batch.
    pub timeout_seconds: f64,
}

/// Longest wait between two requests, in seconds.
pub const LONGEST_BACKOFF: f64 = 60.0;

/// `type = "http"`: an endpoint that answers batches sent by POST.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpReward {
    /// Where to: `http://…` or `https://…`. Required.
    pub url: String,
    /// Most completions of one request.
    pub batch_size: usize,
    /// Longest wait for one answer.
    pub timeout_seconds: f64,
    /// How often a request is sent again after no answer, status 408, 429 or 5xx.
    pub retries: usize,
    /// Wait before the first of them, at most a minute; it doubles each time, up to that.
    pub backoff_seconds: f64,
    /// The environment variable with a token that is sent as `Authorization: Bearer …`; unset sends none.
    pub token_env: Option<String>,
}

impl Default for EnsembleReward {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            combine: Combine::Mean,
            deviations: None,
            score_at: None,
        }
    }
}

impl EnsembleReward {
    /// k of [`Combine::MeanMinusDeviation`].
    pub fn deviations(&self) -> f64 {
        self.deviations.unwrap_or(1.0)
    }
}

impl Default for ClassifierReward {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            label: None,
            output: Output::Logit,
            reads: Reads::Completion,
            max_length: None,
        }
    }
}

impl Default for ExactReward {
    fn default() -> Self {
        Self {
            answer_key: "answer".to_owned(),
            extract: None,
            pass: 1.0,
            fail: 0.0,
        }
    }
}

impl Default for NumericReward {
    fn default() -> Self {
        Self {
            answer_key: "answer".to_owned(),
            extract: None,
            tolerance: 1e-6,
            pass: 1.0,
            fail: 0.0,
        }
    }
}

impl Default for RegexReward {
    fn default() -> Self {
        Self {
            pattern: String::new(),
            pass: 1.0,
            fail: 0.0,
        }
    }
}

impl Default for LengthReward {
    fn default() -> Self {
        Self {
            unit: Unit::Tokens,
            min: None,
            max: None,
            margin: 0,
            pass: 1.0,
            fail: 0.0,
        }
    }
}

impl Default for JsonReward {
    fn default() -> Self {
        Self {
            extract: None,
            keys: Vec::new(),
            pass: 1.0,
            fail: 0.0,
        }
    }
}

impl Default for RepetitionReward {
    fn default() -> Self {
        Self {
            ngram: 3,
            unit: Unit::Words,
        }
    }
}

impl Default for ProgramReward {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            timeout_seconds: 60.0,
        }
    }
}

impl Default for HttpReward {
    fn default() -> Self {
        Self {
            url: String::new(),
            batch_size: 64,
            timeout_seconds: 30.0,
            retries: 3,
            backoff_seconds: 1.0,
            token_env: None,
        }
    }
}

impl RewardKind {
    /// Every kind with its defaults.
    fn all() -> [Self; 11] {
        [
            Self::Model(ModelReward::default()),
            Self::Ensemble(EnsembleReward::default()),
            Self::Classifier(ClassifierReward::default()),
            Self::Exact(ExactReward::default()),
            Self::Numeric(NumericReward::default()),
            Self::Regex(RegexReward::default()),
            Self::Length(LengthReward::default()),
            Self::Json(JsonReward::default()),
            Self::Repetition(RepetitionReward::default()),
            Self::Program(ProgramReward::default()),
            Self::Http(HttpReward::default()),
        ]
    }

    /// The words that `type` may be.
    pub(super) fn words() -> [&'static str; 11] {
        Self::all().map(|kind| kind.word())
    }

    /// The kind of this `type`, with its defaults.
    pub(super) fn named(word: &str) -> Option<Self> {
        Self::all().into_iter().find(|kind| kind.word() == word)
    }

    /// The kind's `type`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Model(_) => "model",
            Self::Ensemble(_) => "ensemble",
            Self::Classifier(_) => "classifier",
            Self::Exact(_) => "exact",
            Self::Numeric(_) => "numeric",
            Self::Regex(_) => "regex",
            Self::Length(_) => "length",
            Self::Json(_) => "json",
            Self::Repetition(_) => "repetition",
            Self::Program(_) => "program",
            Self::Http(_) => "http",
        }
    }
}
