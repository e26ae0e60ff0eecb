//! The types of `[[ppo.rewards]]` and their keys.
//!
//! A rule scores 1 if it holds and 0 otherwise; `pass` and `fail` set other scores. Patterns are
//! those of the crate `regex`: no look-around, no back-references, time linear in the text.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::ScoreAt;
use crate::rlhf::ensemble::Combine;

/// Scorer of a component of `[[ppo.rewards]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum RewardKind {
    /// A reward model.
    Model(ModelReward),
    /// Several reward models.
    Ensemble(EnsembleReward),
    /// A frozen encoder with a classification head.
    Classifier(ClassifierReward),
    /// Rule: the completion is the record's answer.
    Exact(ExactReward),
    /// Rule: the completion's number is the record's answer.
    Numeric(NumericReward),
    /// Rule: a pattern occurs in the completion.
    Regex(RegexReward),
    /// Rule: the completion's length lies in a window.
    Length(LengthReward),
    /// Rule: the completion is JSON.
    Json(JsonReward),
    /// Penalty on n-grams that the completion repeats.
    Repetition(RepetitionReward),
    /// A program of yours, which reads and writes JSON Lines.
    Program(ProgramReward),
    /// An HTTP endpoint of yours.
    Http(HttpReward),
}

impl RewardKind {
    /// Whether the type is a program or an endpoint of the user's.
    pub fn is_external(&self) -> bool {
        matches!(self, Self::Program(_) | Self::Http(_))
    }

    /// Whether the type is a rule, which reads only the completion and the prompt's record.
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

/// Score of a reward model, read from its scalar head at one token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelReward {
    /// Folder of the reward model.
    #[schemars(extend("x-type" = "path", "x-default" = "what `[reward]` trains"))]
    pub path: PathBuf,
    /// Token at which the score is read.
    #[schemars(extend("x-default" = "as the folder was trained"))]
    pub score_at: Option<ScoreAt>,
}

/// Standard deviations that an ensemble subtracts unless `deviations` is set.
const DEVIATIONS: f64 = 1.0;

/// Combined score of several reward models (Coste et al. 2023).
///
/// Train them in runs of different `run.seed`: with one seed they start from the same head and read
/// their pairs in the same order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EnsembleReward {
    /// Folders of the reward models, at least two.
    #[schemars(extend("x-type" = "list of paths", "x-default" = "required"))]
    pub paths: Vec<PathBuf>,
    /// Function that combines the scores.
    pub combine: Combine,
    /// Number of standard deviations to subtract; only with `combine = "mean_minus_deviation"`.
    #[schemars(extend("x-default" = DEVIATIONS))]
    pub deviations: Option<f64>,
    /// Token at which the scores are read.
    #[schemars(extend("x-default" = "as each folder was trained"))]
    pub score_at: Option<ScoreAt>,
}

/// Score of a BERT, DeBERTa-v2 or ModernBERT sequence classifier, run in `f32` on the CPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClassifierReward {
    /// Hugging Face folder with `config.json`, safetensors and `tokenizer.json`.
    #[schemars(extend("x-type" = "path", "x-default" = "required"))]
    pub path: PathBuf,
    /// Label whose output is the score: its name in `id2label`, or its index.
    #[schemars(extend("x-default" = "required, unless there is only one label"))]
    pub label: Option<Label>,
    /// Output of the label that is the score.
    pub output: ClassifierOutput,
    /// Text that the classifier reads.
    pub reads: ClassifierInput,
    /// Largest number of tokens of the text, special tokens included; longer texts are cut.
    #[schemars(extend("x-default" = "the model's `max_position_embeddings`"))]
    pub max_length: Option<usize>,
}

/// A label of a classifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a label's name or its index")]
#[schemars(extend("x-type" = "text or whole number"))]
pub enum Label {
    /// Index of the label.
    Index(usize),
    /// Name of the label.
    Name(String),
}

/// Output of a classifier's label that is the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClassifierOutput {
    /// The label's logit.
    Logit,
    /// The label's probability: softmax over the labels, or the logistic function of a single label
    /// and of labels that do not exclude each other
    /// (`problem_type = "multi_label_classification"`).
    Probability,
}

/// Text that a classifier reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClassifierInput {
    /// The completion alone.
    Completion,
    /// Prompt and completion as one text.
    Text,
    /// Prompt and completion as a pair of texts, with the model's separator between them.
    Pair,
}

/// Whether the completion is the record's answer, both trimmed of white space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExactReward {
    /// Field of the prompt's record that holds the answer.
    pub answer_key: String,
    /// Regular expression whose last match in the completion is compared.
    ///
    /// If the pattern has a group, group 1 is compared. Without a match the answer is wrong.
    #[schemars(extend("x-default" = "the whole completion"))]
    pub extract: Option<String>,
    /// Score of a right answer.
    pub pass: f64,
    /// Score of a wrong answer.
    pub fail: f64,
}

/// Whether the last number in the completion is the record's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NumericReward {
    /// Field of the prompt's record that holds the answer: a number, or a text whose last number is
    /// taken.
    pub answer_key: String,
    /// Regular expression whose last match in the completion is searched for the number.
    ///
    /// If the pattern has a group, group 1 is searched.
    #[schemars(extend("x-default" = "the whole completion"))]
    pub extract: Option<String>,
    /// Largest difference that counts as right.
    pub tolerance: f64,
    /// Score of a right answer.
    pub pass: f64,
    /// Score of a wrong answer, or of a completion without a number.
    pub fail: f64,
}

/// Whether a pattern occurs in the completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RegexReward {
    /// Regular expression to find; `^` and `$` anchor it to the ends of the completion.
    ///
    /// Patterns are those of Rust's crate `regex`: no look-around and no back-references.
    #[schemars(extend("x-default" = "required"))]
    pub pattern: String,
    /// Score of a completion with a match.
    pub pass: f64,
    /// Score of a completion without a match.
    pub fail: f64,
}

/// Whether the completion's length lies between `min` and `max`, of which one is required.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LengthReward {
    /// Unit of `min`, `max` and `margin`.
    pub unit: TextUnit,
    /// Smallest length that passes; unset has no lower limit.
    pub min: Option<usize>,
    /// Largest length that passes; unset has no upper limit.
    pub max: Option<usize>,
    /// Distance outside the limits over which the score falls from `pass` to `fail`; 0 falls at
    /// once.
    pub margin: usize,
    /// Score of a length within the limits.
    pub pass: f64,
    /// Score of a length beyond the margin.
    pub fail: f64,
}

/// Unit of lengths and repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TextUnit {
    /// Generated tokens, the end token included.
    Tokens,
    /// Words between white space.
    Words,
    /// Unicode characters.
    Characters,
}

/// Whether the completion is one JSON value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JsonReward {
    /// Regular expression whose last match in the completion is read as JSON.
    ///
    /// If the pattern has a group, group 1 is read.
    #[schemars(extend("x-default" = "the whole completion"))]
    pub extract: Option<String>,
    /// Keys that the JSON value must have; it must then be an object.
    pub keys: Vec<String>,
    /// Score of valid JSON.
    pub pass: f64,
    /// Score of anything else.
    pub fail: f64,
}

/// Minus the share of n-grams that occur earlier in the completion, between −1 and 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RepetitionReward {
    /// Length n of the n-grams.
    pub ngram: usize,
    /// Unit of the n-grams.
    pub unit: TextUnit,
}

/// Scores of a program that keeps running and answers each line of JSON with another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProgramReward {
    /// Program and its arguments, started without a shell.
    #[schemars(extend("x-default" = "required"))]
    pub command: Vec<String>,
    /// Longest wait for the scores of a batch, in seconds.
    pub timeout_seconds: f64,
}

/// Longest wait between two requests, in seconds.
pub const LONGEST_BACKOFF: f64 = 60.0;

/// Scores of an HTTP endpoint that answers batches sent by POST.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HttpReward {
    /// Address of the endpoint: `http://…` or `https://…`.
    #[schemars(extend("x-default" = "required"))]
    pub url: String,
    /// Largest number of completions in one request.
    pub batch_size: usize,
    /// Longest wait for one answer, in seconds.
    pub timeout_seconds: f64,
    /// Number of times a request is sent again after no answer, or status 408, 429 or 5xx.
    pub retries: usize,
    /// Wait before the first retry in seconds, at most 60; it doubles with each further one.
    pub backoff_seconds: f64,
    /// Environment variable with a token to send as `Authorization: Bearer …`; unset sends none.
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
    /// Factor of the standard deviation in [`Combine::MeanMinusDeviation`].
    pub fn deviations(&self) -> f64 {
        self.deviations.unwrap_or(DEVIATIONS)
    }
}

impl Default for ClassifierReward {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            label: None,
            output: ClassifierOutput::Logit,
            reads: ClassifierInput::Completion,
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
            unit: TextUnit::Tokens,
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
            unit: TextUnit::Words,
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
    /// All types with their defaults.
    pub(in crate::config) fn all() -> [Self; 11] {
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

    /// The type of this word, with its defaults.
    pub(super) fn named(word: &str) -> Option<Self> {
        Self::all().into_iter().find(|kind| kind.word() == word)
    }

    /// Word of the type.
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
