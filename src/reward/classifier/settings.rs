//! `config.json` of a classifier: its labels, and its sizes as candle-transformers reads them.
//!
//! candle-transformers ignores keys that it does not know, so an unsupported option would change
//! the scores silently, or panic. Such options are refused here. Keys that transformers writes
//! under other names (`norm_eps`, `rope_parameters`, `layer_types`) or omits at their defaults are
//! translated.

use std::path::{Path, PathBuf};

use candle_transformers::models::{bert, debertav2, modernbert};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::wrong;
use crate::files::regular;
use crate::reward::RewardError;

/// Sizes that must not be 0; candle-transformers divides by some of them.
const SIZES: [&str; 8] = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "attention_head_size",
    "intermediate_size",
    "max_position_embeddings",
    "pooler_hidden_size",
];

/// The contents of `config.json`.
pub struct ClassifierSettings {
    /// The model's folder, for errors.
    folder: PathBuf,
    fields: Map<String, Value>,
    /// Labels of the classifier.
    pub labels: Labels,
}

/// The labels of a classifier.
pub struct Labels {
    /// Names of the labels by index.
    pub names: Vec<String>,
    several_hold: bool,
}

/// How ModernBERT pools its hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's hidden state.
    First,
    /// Mean over the tokens.
    Mean,
}

impl Labels {
    /// Whether exactly one label is true of a text.
    pub fn exclude_each_other(&self) -> bool {
        self.names.len() > 1 && !self.several_hold
    }

    fn of(fields: &Map<String, Value>) -> Result<Self, String> {
        let several_hold = fields.get("problem_type") == Some(&json!("multi_label_classification"));
        let names = match fields.get("id2label").and_then(Value::as_object) {
            Some(labels) => {
                let name = |index: usize| {
                    let name = labels.get(&index.to_string()).and_then(Value::as_str);
                    name.map(str::to_owned)
                        .ok_or_else(|| format!("config.json: id2label has no label {index}"))
                };
                (0..labels.len()).map(name).collect::<Result<_, _>>()?
            }
            None => {
                let count = fields
                    .get("num_labels")
                    .and_then(Value::as_u64)
                    .unwrap_or(2);
                (0..count).map(|index| format!("LABEL_{index}")).collect()
            }
        };
        Ok(Self {
            names,
            several_hold,
        })
    }
}

impl ClassifierSettings {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// If the file cannot be read or is not a JSON object.
    pub fn read(folder: &Path) -> Result<Self, RewardError> {
        let bytes = regular::read(&folder.join("config.json"))
            .map_err(|error| wrong(folder, format!("config.json cannot be read: {error}")))?;
        let fields: Map<String, Value> = serde_json::from_slice(&bytes)
            .map_err(|error| wrong(folder, format!("config.json: {error}")))?;
        let labels = Labels::of(&fields).map_err(|message| wrong(folder, message))?;
        Ok(Self {
            folder: folder.to_owned(),
            fields,
            labels,
        })
    }

    /// `model_type`, empty if there is none.
    pub fn model_type(&self) -> &str {
        self.text("model_type").unwrap_or_default()
    }

    /// Most tokens of a text.
    ///
    /// # Errors
    /// If `max_position_embeddings` is missing.
    pub fn positions(&self) -> Result<usize, RewardError> {
        self.count("max_position_embeddings")
    }

    /// Number of layers.
    ///
    /// # Errors
    /// If `num_hidden_layers` is missing.
    pub fn layers(&self) -> Result<usize, RewardError> {
        self.count("num_hidden_layers")
    }

    fn count(&self, key: &str) -> Result<usize, RewardError> {
        let count = self.fields.get(key).and_then(Value::as_u64);
        count
            .map(|count| count as usize)
            .ok_or_else(|| self.wrong(&format!("config.json has no whole number {key}")))
    }

    /// Configuration of a BERT.
    ///
    /// # Errors
    /// If a size is missing, or the model has relative positions or is a decoder.
    pub fn bert(&self) -> Result<bert::Config, RewardError> {
        self.refuse("is_decoder", |value| value == &json!(true))?;
        self.parse(self.with_activation("hidden_act"))
    }

    /// Configuration of a DeBERTa-v2.
    ///
    /// # Errors
    /// If a size is missing, or the model has a convolution.
    pub fn deberta_v2(&self) -> Result<debertav2::Config, RewardError> {
        self.refuse("conv_kernel_size", |value| value.as_f64() != Some(0.0))?;
        let mut fields = self.with_activation("hidden_act");
        let hidden_size = fields.get("hidden_size").cloned().unwrap_or_default();
        let defaults = [
            ("pooler_hidden_size", hidden_size),
            ("pooler_dropout", json!(0.0)),
            ("pooler_hidden_act", json!("gelu")),
            ("pos_att_type", json!([])),
            ("position_biased_input", json!(true)),
            ("relative_attention", json!(false)),
            ("max_relative_positions", json!(-1)),
            ("type_vocab_size", json!(0)),
        ];
        for (key, default) in defaults {
            let value = fields.entry(key).or_insert(Value::Null);
            if value.is_null() {
                *value = default;
            }
        }
        translate(&mut fields, "pooler_hidden_act");
        let names = self.labels.names.iter().enumerate();
        let labels = names.map(|(index, name)| (index.to_string(), json!(name)));
        fields.insert("id2label".to_owned(), Value::Object(labels.collect()));
        fields.remove("label2id");
        self.parse(fields)
    }

    /// Configuration of a ModernBERT.
    ///
    /// # Errors
    /// If a size is missing, or the model has biases, scaled rotary embeddings or another
    /// activation than GELU.
    pub fn modern_bert(&self) -> Result<modernbert::Config, RewardError> {
        for bias in ["attention_bias", "mlp_bias", "norm_bias"] {
            self.refuse(bias, |value| value == &json!(true))?;
        }
        for activation in ["hidden_activation", "classifier_activation"] {
            self.refuse(activation, |value| value != &json!("gelu"))?;
        }
        let mut fields = self.fields.clone();
        let mut set = |key: &str, value: Value| fields.insert(key.to_owned(), value);
        let eps = self.first(&["norm_eps", "layer_norm_eps"]);
        set("layer_norm_eps", eps.unwrap_or(json!(1e-5)));
        let global = self.theta("full_attention", "global_rope_theta", 160_000.0)?;
        set("global_rope_theta", global);
        let local = self.theta("sliding_attention", "local_rope_theta", 10_000.0)?;
        set("local_rope_theta", local);
        set("global_attn_every_n_layers", json!(self.global_every()?));
        // Labels are read by [`Labels::of`].
        for key in ["id2label", "label2id", "classifier_pooling"] {
            fields.remove(key);
        }
        self.parse(fields)
    }

    /// How the ModernBERT pools.
    ///
    /// # Errors
    /// If `classifier_pooling` is another word.
    pub fn pooling(&self) -> Result<Pooling, RewardError> {
        match self.text("classifier_pooling") {
            None | Some("cls") => Ok(Pooling::First),
            Some("mean") => Ok(Pooling::Mean),
            Some(other) => Err(self.wrong(&format!(
                "classifier_pooling is \"{other}\"; \"cls\" and \"mean\" are known"
            ))),
        }
    }

    /// Whether a key is present and true.
    pub fn is_set(&self, key: &str) -> bool {
        self.fields.get(key) == Some(&json!(true))
    }

    /// The rotary base of one kind of layer, from either form of the configuration.
    fn theta(&self, layers: &str, key: &str, default: f64) -> Result<Value, RewardError> {
        let rotation = self
            .fields
            .get("rope_parameters")
            .and_then(|r| r.get(layers));
        let kind = rotation.and_then(|rotation| rotation.get("rope_type"));
        let plain = kind.is_none_or(|kind| kind == &json!("default"));
        if !plain || self.first(&["rope_scaling"]).is_some() {
            return Err(self.wrong("its rotations are scaled, which is not computed here"));
        }
        let theta = rotation
            .and_then(|rotation| rotation.get("rope_theta"))
            .cloned();
        Ok(theta
            .or_else(|| self.first(&[key]))
            .unwrap_or(json!(default)))
    }

    /// n, if every n-th layer from the first on attends to all tokens; from either form of the
    /// configuration.
    fn global_every(&self) -> Result<usize, RewardError> {
        let Some(kinds) = self.fields.get("layer_types").and_then(Value::as_array) else {
            let every = self.first(&["global_attn_every_n_layers"]);
            return Ok(every.and_then(|n| n.as_u64()).unwrap_or(3).max(1) as usize);
        };
        let global: Vec<bool> = kinds.iter().map(|kind| kind == "full_attention").collect();
        let second = global.iter().skip(1).position(|&global| global);
        let every = second.map_or(global.len(), |place| place + 1).max(1);
        let regular = |(layer, &global): (usize, &bool)| global == (layer % every == 0);
        match global.iter().enumerate().all(regular) {
            true => Ok(every),
            false => Err(self
                .wrong("layer_types does not repeat every n layers, which is not computed here")),
        }
    }

    /// The first of these keys that has a value.
    fn first(&self, keys: &[&str]) -> Option<Value> {
        let values = keys.iter().filter_map(|key| self.fields.get(*key));
        values.into_iter().find(|value| !value.is_null()).cloned()
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.fields.get(key).and_then(Value::as_str)
    }

    fn with_activation(&self, key: &str) -> Map<String, Value> {
        let mut fields = self.fields.clone();
        translate(&mut fields, key);
        fields
    }

    fn refuse(&self, key: &str, changes: impl Fn(&Value) -> bool) -> Result<(), RewardError> {
        match self.fields.get(key) {
            Some(value) if !value.is_null() && changes(value) => Err(self.wrong(&format!(
                "config.json has {key} = {value}, which is not supported here; use another \
                 classifier"
            ))),
            _ => Ok(()),
        }
    }

    fn parse<T: DeserializeOwned>(&self, fields: Map<String, Value>) -> Result<T, RewardError> {
        check_sizes(&fields).map_err(|message| self.wrong(&message))?;
        serde_json::from_value(Value::Object(fields))
            .map_err(|error| self.wrong(&format!("config.json: {error}")))
    }

    fn wrong(&self, message: &str) -> RewardError {
        wrong(&self.folder, message)
    }
}

/// Refuses sizes by which candle-transformers would divide without a check.
fn check_sizes(fields: &Map<String, Value>) -> Result<(), String> {
    let size = |key: &str| fields.get(key).and_then(Value::as_u64);
    if let Some(key) = SIZES.iter().find(|key| size(key) == Some(0)) {
        return Err(format!(
            "config.json has {key} = 0; a model has at least one of them"
        ));
    }
    match (size("hidden_size"), size("num_attention_heads")) {
        (Some(hidden), Some(heads))
            if size("attention_head_size").is_none() && hidden % heads != 0 =>
        {
            Err(format!(
                "config.json has num_attention_heads = {heads}, which does not divide hidden_size \
                 = {hidden}"
            ))
        }
        _ => Ok(()),
    }
}

/// Translates transformers' names of the tanh form of GELU to candle's.
fn translate(fields: &mut Map<String, Value>, key: &str) {
    let tangent = ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"];
    let value = fields.get(key).and_then(Value::as_str);
    if value.is_some_and(|value| tangent.contains(&value)) {
        fields.insert(key.to_owned(), json!("geluapproximate"));
    }
}
