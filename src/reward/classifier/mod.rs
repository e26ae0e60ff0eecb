//! Frozen encoders with a classification head as rewards: the BERT, DeBERTa-v2 and ModernBERT of
//! candle-transformers, in `f32` on the CPU, from Hugging Face folders (`config.json`, safetensors,
//! `tokenizer.json`).
//!
//! Each text is one forward pass, so that its score depends on no other text and needs no padding.
//! [`networks`] adds the parts that candle-transformers 0.11.1 lacks: BERT's pooler and head, and
//! ModernBERT's head without its softmax.

mod networks;
mod settings;

use std::path::Path;

use candle_core::{Device, Tensor};
use tokenizers::tokenizer::{TruncationDirection, TruncationParams, TruncationStrategy};

use super::{RewardBatch, RewardError, RewardInput, Scorer};
use crate::config::{ClassifierInput, ClassifierOutput, ClassifierReward, Label};
use crate::rlhf::preference::sigmoid;
use networks::Network;
use settings::{ClassifierSettings, Labels};

/// A classifier; the logit or probability of one of its labels is the score.
pub struct Classifier {
    network: Network,
    tokenizer: tokenizers::Tokenizer,
    labels: Labels,
    label: usize,
    output: ClassifierOutput,
    reads: ClassifierInput,
}

impl Classifier {
    /// Loads the configured classifier.
    ///
    /// # Errors
    /// If the folder lacks a file, holds an unsupported architecture or option, or has no such
    /// label.
    pub fn load(config: &ClassifierReward) -> Result<Self, RewardError> {
        let folder = config.path.as_path();
        let settings = ClassifierSettings::read(folder)?;
        let network = Network::load(folder, &settings)?;
        let positions = settings.positions()?;
        let max_length = config.max_length.unwrap_or(positions).min(positions);
        let label = label(&settings.labels, config.label.as_ref());
        Ok(Self {
            network,
            tokenizer: tokenizer(folder, max_length)?,
            label: label.map_err(|message| wrong(folder, message))?,
            labels: settings.labels,
            output: config.output,
            reads: config.reads,
        })
    }

    /// The logits of every label for a text, or for a pair of texts.
    ///
    /// # Errors
    /// If the text has no tokens, or the computation fails.
    pub fn logits(&self, text: &str, pair: Option<&str>) -> Result<Vec<f32>, RewardError> {
        let encoded = match pair {
            Some(pair) => self.tokenizer.encode((text, pair), true),
            None => self.tokenizer.encode(text, true),
        };
        let encoded = encoded.map_err(|error| RewardError::Record(error.to_string()))?;
        if encoded.is_empty() {
            let message = "the classifier's tokenizer gives no token for a text, not even the \
                           special one that classifiers read";
            return Err(RewardError::Record(message.to_owned()));
        }
        let ids = Tensor::new(encoded.get_ids(), &Device::Cpu)?.unsqueeze(0)?;
        let types = Tensor::new(encoded.get_type_ids(), &Device::Cpu)?.unsqueeze(0)?;
        Ok(self.network.logits(&ids, &types)?.squeeze(0)?.to_vec1()?)
    }

    fn score(&self, completion: &RewardInput) -> Result<f32, RewardError> {
        let whole;
        let (text, pair) = match self.reads {
            ClassifierInput::Completion => (completion.text, None),
            ClassifierInput::Pair => (completion.prompt, Some(completion.text)),
            ClassifierInput::Text => {
                whole = [completion.prompt, completion.text].concat();
                (whole.as_str(), None)
            }
        };
        let logits = self.logits(text, pair)?;
        Ok(match (self.output, self.labels.exclude_each_other()) {
            (ClassifierOutput::Logit, _) => logits[self.label],
            (ClassifierOutput::Probability, true) => softmax(&logits, self.label),
            (ClassifierOutput::Probability, false) => sigmoid(logits[self.label].into()) as f32,
        })
    }
}

impl Scorer for Classifier {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        batch.completions.iter().map(|c| self.score(c)).collect()
    }
}

fn tokenizer(folder: &Path, max_length: usize) -> Result<tokenizers::Tokenizer, RewardError> {
    let file = folder.join("tokenizer.json");
    let unreadable = |error: tokenizers::Error| {
        let mend = "save the model's fast tokenizer there (transformers: \
                    AutoTokenizer.from_pretrained(…).save_pretrained(…))";
        wrong(
            folder,
            format!("tokenizer.json cannot be read ({error}); {mend}"),
        )
    };
    let mut tokenizer = tokenizers::Tokenizer::from_file(file).map_err(unreadable)?;
    let truncation = TruncationParams {
        direction: TruncationDirection::Right,
        max_length,
        strategy: TruncationStrategy::LongestFirst,
        stride: 0,
    };
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(Some(truncation))
        .map_err(unreadable)?;
    Ok(tokenizer)
}

/// Index of the configured label.
fn label(labels: &Labels, meant: Option<&Label>) -> Result<usize, String> {
    let names = &labels.names;
    let known = || {
        let listed = names.iter().enumerate();
        let listed = listed.map(|(index, name)| format!("{index} \"{name}\""));
        listed.collect::<Vec<_>>().join(", ")
    };
    match meant {
        None if names.len() == 1 => Ok(0),
        None => Err(format!(
            "has several labels; set label to one of {}",
            known()
        )),
        Some(Label::Index(index)) if *index < names.len() => Ok(*index),
        Some(Label::Index(index)) => Err(format!("has no label {index}; it has {}", known())),
        Some(Label::Name(name)) => {
            let place = names.iter().position(|known| known == name);
            place.ok_or_else(|| format!("has no label \"{name}\"; it has {}", known()))
        }
    }
}

fn softmax(logits: &[f32], label: usize) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: &f32| f64::from(logit - largest).exp();
    (weight(&logits[label]) / logits.iter().map(weight).sum::<f64>()) as f32
}

fn wrong(folder: &Path, message: impl Into<String>) -> RewardError {
    RewardError::Classifier {
        folder: folder.to_owned(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests;
