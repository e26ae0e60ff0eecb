//! The encoders with their classification heads: token ids → logits.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Module, Result as CandleResult, Tensor};
use candle_nn::{Linear, VarBuilder, linear, linear_b};
use candle_transformers::models::bert::BertModel;
use candle_transformers::models::debertav2::DebertaV2SeqClassificationModel;
use candle_transformers::models::modernbert::ModernBert;

use super::settings::{ClassifierSettings, Pooling};
use super::wrong;
use crate::model::weights::{Weights, WeightsError};
use crate::reward::RewardError;

/// An encoder with its head.
pub enum Network {
    /// `BertForSequenceClassification`.
    Bert(Box<Bert>),
    /// `DebertaV2ForSequenceClassification`.
    DebertaV2(Box<DebertaV2SeqClassificationModel>),
    /// `ModernBertForSequenceClassification`.
    ModernBert(Box<ModernBertHead>),
}

/// BERT: the first token's state through tanh(pooler) and the classifier.
pub struct Bert {
    encoder: BertModel,
    pooler: Linear,
    classifier: Linear,
}

/// ModernBERT: the pooled state through norm(GELU(dense)) and the classifier.
pub struct ModernBertHead {
    encoder: ModernBert,
    pooling: Pooling,
    dense: Linear,
    #[expect(
        clippy::disallowed_types,
        reason = "nothing is trained here, so no gradient is lost"
    )]
    norm: candle_nn::LayerNorm,
    classifier: Linear,
}

impl Network {
    /// Loads the weights of the architecture in `settings`.
    ///
    /// # Errors
    /// If the architecture is unsupported, or a tensor is missing or has another shape.
    pub fn load(folder: &Path, settings: &ClassifierSettings) -> Result<Self, RewardError> {
        let known = ["bert", "deberta-v2", "modernbert"];
        let kind = settings.model_type();
        if !known.contains(&kind) {
            let message = format!(
                "holds a model of type \"{kind}\"; classifiers are {}",
                known.join(", ")
            );
            return Err(wrong(folder, message));
        }
        let tensors = tensors(folder)?;
        check_layers(kind, &tensors, settings.layers()?)
            .map_err(|message| wrong(folder, message))?;
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let built = match kind {
            "bert" => Bert::build(vb, settings),
            "deberta-v2" => deberta_v2(vb, settings),
            _ => ModernBertHead::build(vb, settings),
        };
        built.map_err(|error| match error {
            RewardError::Compute(error) => wrong(
                folder,
                format!("the weights are not those of config.json's classifier: {error}"),
            ),
            other => other,
        })
    }

    /// The logits (1, labels) of one text's `ids` and token `types`, both (1, tokens).
    ///
    /// # Errors
    /// If an id lies outside the vocabulary.
    pub fn logits(&self, ids: &Tensor, types: &Tensor) -> CandleResult<Tensor> {
        match self {
            Self::Bert(bert) => bert.logits(ids, types),
            Self::DebertaV2(deberta) => deberta.forward(ids, Some(types.clone()), None),
            Self::ModernBert(modern_bert) => modern_bert.logits(ids),
        }
    }
}

impl Bert {
    fn build(vb: VarBuilder, settings: &ClassifierSettings) -> Result<Network, RewardError> {
        let config = settings.bert()?;
        let (hidden, labels) = (config.hidden_size, settings.labels.names.len());
        Ok(Network::Bert(Box::new(Self {
            encoder: BertModel::load(vb.pp("bert"), &config)?,
            pooler: linear(hidden, hidden, vb.pp("bert.pooler.dense"))?,
            classifier: linear(hidden, labels, vb.pp("classifier"))?,
        })))
    }

    fn logits(&self, ids: &Tensor, types: &Tensor) -> CandleResult<Tensor> {
        let first = first(&self.encoder.forward(ids, types, None)?)?;
        self.classifier
            .forward(&self.pooler.forward(&first)?.tanh()?)
    }
}

fn deberta_v2(vb: VarBuilder, settings: &ClassifierSettings) -> Result<Network, RewardError> {
    // Pooler and classifier are at the root.
    let config = settings.deberta_v2()?;
    let model = DebertaV2SeqClassificationModel::load(vb.set_prefix("deberta"), &config, None)?;
    Ok(Network::DebertaV2(Box::new(model)))
}

impl ModernBertHead {
    fn build(vb: VarBuilder, settings: &ClassifierSettings) -> Result<Network, RewardError> {
        let config = settings.modern_bert()?;
        let (hidden, labels) = (config.hidden_size, settings.labels.names.len());
        let bias = settings.is_set("classifier_bias");
        let norm = vb.pp("head.norm");
        Ok(Network::ModernBert(Box::new(Self {
            encoder: ModernBert::load(vb.clone(), &config)?,
            pooling: settings.pooling()?,
            dense: linear_b(hidden, hidden, bias, vb.pp("head.dense"))?,
            norm: candle_nn::layer_norm_no_bias(hidden, config.layer_norm_eps, norm)?,
            classifier: linear(hidden, labels, vb.pp("classifier"))?,
        })))
    }

    fn logits(&self, ids: &Tensor) -> CandleResult<Tensor> {
        let hidden = self.encoder.forward(ids, &ids.ones_like()?)?;
        let pooled = match self.pooling {
            Pooling::First => first(&hidden)?,
            Pooling::Mean => hidden.mean(1)?,
        };
        let head = self
            .norm
            .forward(&self.dense.forward(&pooled)?.gelu_erf()?)?;
        self.classifier.forward(&head)
    }
}

/// Checks that the files hold exactly the `count` layers of `config.json`: candle-transformers
/// would ignore further layers, and a norm that a ModernBERT lacks.
fn check_layers(kind: &str, tensors: &HashMap<String, Tensor>, count: usize) -> Result<(), String> {
    let layers = match kind {
        "bert" => "bert.encoder.layer.",
        "deberta-v2" => "deberta.encoder.layer.",
        _ => "model.layers.",
    };
    let layer = |name: &str| name.strip_prefix(layers)?.split('.').next()?.parse().ok();
    let beyond = |name: &&String| layer(name).is_some_and(|layer: usize| layer >= count);
    if let Some(name) = tensors.keys().filter(beyond).min() {
        return Err(format!(
            "the weights hold {name}, but config.json has {count} layers only"
        ));
    }
    // The first layer has no attention norm.
    let norm = |layer| format!("{layers}{layer}.attn_norm.weight");
    let missing = (1..count)
        .map(norm)
        .find(|name| !tensors.contains_key(name));
    match missing.filter(|_| kind == "modernbert") {
        Some(name) => Err(format!("the weights lack {name}")),
        None => Ok(()),
    }
}

/// Hidden state of the first token: (1, tokens, hidden) → (1, hidden).
fn first(hidden: &Tensor) -> CandleResult<Tensor> {
    hidden.narrow(1, 0, 1)?.squeeze(1)?.contiguous()
}

/// All float tensors, in `f32`, under their current names: old BERTs call a norm's weight `gamma`
/// and its bias `beta`.
fn tensors(folder: &Path) -> Result<HashMap<String, Tensor>, RewardError> {
    let weights = Weights::open(folder)?;
    let tensor = |found: Result<(&str, &[usize], Vec<f32>), WeightsError>| {
        let (name, shape, values) = found?;
        let name = name
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias");
        Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
    };
    weights.floats().map(tensor).collect()
}
