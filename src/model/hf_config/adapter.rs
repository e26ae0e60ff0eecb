//! Reads and writes `adapter_config.json` of a PEFT folder.
//!
//! The adapted modules follow from the tensors' names, so that every way to select them in PEFT is
//! supported. Settings that would change results and are not supported (DoRA, biases, ranks of
//! single modules, …) are refused by their key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::fields::JsonFields;
use super::keys::says_something;
use super::{HfConfigError, read_object, say_unread};
use crate::model::config::Head;
use crate::model::hub;
use crate::model::weights::Weights;

/// The file that makes a folder a PEFT folder.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Value of `modules_to_save` for a classifier in PEFT.
const SAVED_HEADS: [&str; 2] = ["classifier", "score"];

/// Keys that change an adapter's result unless they are null, false or empty.
const UNKNOWN: [&str; 15] = [
    "use_dora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "loftq_config",
];

/// Keys that are read, and keys that do not affect trained adapters.
const KNOWN: [&str; 27] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Initialisations that also change the base, so that the base on disk is another model.
const CHANGED_BASES: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Contents of `adapter_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Folder or name of the base model (`base_model_name_or_path`).
    pub base: String,
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Whether the denominator of the scale is √r instead of r.
    pub use_rslora: bool,
    /// Dropout with which the adapters were trained; the engine trains without dropout.
    pub lora_dropout: f64,
    /// Head of the adapted model, by `task_type`.
    pub head: Head,
}

impl AdapterConfig {
    /// The adapter configuration of a model folder, if it is a PEFT folder. A PEFT folder must not
    /// hold weights of a whole model too, because readers disagree on what the folder then means:
    /// the model alone, the adapter on this model, or the adapter on its base.
    ///
    /// # Errors
    /// If the folder holds a whole model too, and as [`Self::read`].
    pub fn find(folder: &Path) -> Result<Option<Self>, HfConfigError> {
        let found = Self::read(folder)?;
        match found.is_some() && Weights::are_in(folder) {
            true => Err(HfConfigError::ModelAndAdapter(folder.to_owned())),
            false => Ok(found),
        }
    }

    /// Reads `adapter_config.json` in `folder`; `None` if there is none.
    ///
    /// # Errors
    /// If the file is not JSON, or a key is missing, of the wrong type, or has an unsupported
    /// value.
    pub fn read(folder: &Path) -> Result<Option<Self>, HfConfigError> {
        let file = folder.join(ADAPTER_CONFIG);
        if !file.is_file() {
            return Ok(None);
        }
        let map = read_object(&file)?;
        let fields = JsonFields::new(&file, &map);
        refuse_unknown(&fields)?;
        let base = fields.text("base_model_name_or_path")?;
        let r = fields.required_size("r")?;
        if r == 0 {
            return Err(fields.unsupported("r", "1 or more"));
        }
        Ok(Some(Self {
            base: base
                .ok_or_else(|| fields.missing("base_model_name_or_path", "a model folder"))?
                .to_owned(),
            r,
            lora_alpha: fields.required_number("lora_alpha")?,
            use_rslora: fields.flag("use_rslora")?.unwrap_or(false),
            lora_dropout: fields.number("lora_dropout")?.unwrap_or(0.0),
            head: head(&fields)?,
        }))
    }

    /// The folder of the base model: relative to the adapter's `folder` or to the working
    /// directory, or a model of the hub.
    ///
    /// # Errors
    /// If there is no such folder, or it holds an adapter itself.
    pub fn base_folder(&self, folder: &Path) -> Result<PathBuf, HfConfigError> {
        let file = folder.join(ADAPTER_CONFIG);
        let places = [folder.join(&self.base), PathBuf::from(&self.base)];
        let base = match places.into_iter().find(|place| place.is_dir()) {
            Some(place) => place,
            None => hub::local(Path::new(&self.base))
                .ok()
                .filter(|place| place.is_dir())
                .ok_or_else(|| HfConfigError::NoBase {
                    file: file.clone(),
                    found: self.base.clone(),
                })?,
        };
        match base.join(ADAPTER_CONFIG).is_file() {
            true => Err(HfConfigError::AdaptedBase { file, base }),
            false => Ok(base),
        }
    }

    /// Contents of `adapter_config.json`; `targets` are module names in the layers `layers`, or in
    /// all layers.
    pub(in crate::model) fn to_json(
        &self,
        targets: &[String],
        layers: Option<&[usize]>,
        fan_in_fan_out: bool,
    ) -> Map<String, Value> {
        let (task, saved) = match self.head {
            Head::LanguageModel => ("CAUSAL_LM", None),
            Head::Score => ("SEQ_CLS", Some(SAVED_HEADS)),
        };
        let values = [
            ("base_model_name_or_path", json!(self.base)),
            ("bias", json!("none")),
            ("fan_in_fan_out", json!(fan_in_fan_out)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", json!(true)),
            ("layers_to_transform", json!(layers)),
            ("lora_alpha", json!(self.lora_alpha)),
            ("lora_dropout", json!(0.0)),
            ("modules_to_save", json!(saved)),
            ("peft_type", json!("LORA")),
            ("r", json!(self.r)),
            ("target_modules", json!(targets)),
            ("task_type", json!(task)),
            ("use_rslora", json!(self.use_rslora)),
        ];
        values
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .collect()
    }
}

fn refuse_unknown(fields: &JsonFields) -> Result<(), HfConfigError> {
    if fields.text("peft_type")?.is_some_and(|kind| kind != "LORA") {
        return Err(fields.unsupported("peft_type", "LORA"));
    }
    if fields.text("bias")?.is_some_and(|bias| bias != "none") {
        return Err(fields.unsupported("bias", "none"));
    }
    if let Some(key) = UNKNOWN
        .iter()
        .find(|key| fields.get(key).is_some_and(says_something))
    {
        return Err(fields.unsupported(key, "plain LoRA, which does not set this key"));
    }
    let unread = fields.entries().filter(|(key, value)| {
        !KNOWN.contains(key) && !UNKNOWN.contains(key) && says_something(value)
    });
    let unread: Vec<&str> = unread.map(|(key, _)| key).collect();
    say_unread(fields.file(), &unread);
    let changed = |start: &str| CHANGED_BASES.iter().any(|name| start.starts_with(name));
    let start = fields.get("init_lora_weights").and_then(Value::as_str);
    match start.is_some_and(changed) {
        true => Err(fields.unsupported(
            "init_lora_weights",
            "initial values that do not change the base",
        )),
        false => Ok(()),
    }
}

fn head(fields: &JsonFields) -> Result<Head, HfConfigError> {
    let head = match fields.text("task_type")? {
        None | Some("CAUSAL_LM") => Head::LanguageModel,
        Some("SEQ_CLS") => Head::Score,
        Some(_) => return Err(fields.unsupported("task_type", "CAUSAL_LM, SEQ_CLS")),
    };
    let saved = fields.texts("modules_to_save")?.unwrap_or_default();
    let is_head = |name: &&str| head == Head::Score && SAVED_HEADS.contains(name);
    match saved.iter().all(is_head) {
        true => Ok(head),
        false => Err(fields.unsupported("modules_to_save", "the score head of a SEQ_CLS model")),
    }
}
