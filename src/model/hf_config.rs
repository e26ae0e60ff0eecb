//! Reads and writes `config.json` and `generation_config.json` of a Hugging Face folder;
//! [`adapter`] is PEFT's `adapter_config.json`.
//!
//! Both dialects are read: the older one (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of
//! transformers 5 (`rope_parameters`, `dtype`). The older one is written, because both generations
//! of transformers read it. Keys that the engine does not know are kept unchanged. Left out:
//! families, activations and rotary scalings that [`DecoderConfig`] cannot describe; they are
//! refused by name, never approximated.

pub mod adapter;
mod fields;
mod keys;
mod parse;
mod sampling;
mod write;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use thiserror::Error;

use super::config::{DecoderConfig, Head, InvalidDecoder};
use crate::config::ScoreAt;
use crate::data::{DataError, Tokenizer};
use crate::files::regular;
use crate::terminal;
use adapter::AdapterConfig;
use fields::JsonFields;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// The configuration of a model folder.
#[derive(Debug, Clone, PartialEq)]
pub struct HfConfig {
    /// Architecture of the model. It may be changed (another head, more tokens, a padding token)
    /// before [`write`](Self::write).
    pub decoder: DecoderConfig,
    /// Tokens at which generation stops: `eos_token_id` of `generation_config.json` and of
    /// `config.json`, each once.
    pub stop_ids: Vec<u32>,
    /// The token at which a reward model's score is read by default; [`ScoreAt::Eos`] for a
    /// language model.
    pub score_at: ScoreAt,
    /// Contents of the files, which keep the keys that the engine does not know.
    config: Map<String, Value>,
    generation: Map<String, Value>,
}

/// An error of reading or writing a model's configuration, with the file and the key.
#[derive(Debug, Error)]
#[allow(
    missing_docs,
    reason = "the messages state what variants and fields hold"
)]
pub enum HfConfigError {
    #[error("{}: cannot be read; name a folder that holds a Hugging Face model", .file.display())]
    Read {
        file: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: not a JSON object", .file.display())]
    Syntax {
        file: PathBuf,
        source: serde_json::Error,
    },
    #[error("{}: key `{key}` is missing; expected {expected}", .file.display())]
    MissingKey {
        file: PathBuf,
        key: String,
        expected: &'static str,
    },
    #[error("{}: key `{key}` is {found}; expected {expected}", .file.display())]
    WrongType {
        file: PathBuf,
        key: String,
        found: String,
        expected: &'static str,
    },
    #[error(
        "{}: key `{key}` is {found}, which is not supported; supported: {supported}",
        .file.display()
    )]
    Unsupported {
        file: PathBuf,
        key: String,
        found: String,
        supported: String,
    },
    #[error("{}: no such model is possible", .file.display())]
    Impossible {
        file: PathBuf,
        source: InvalidDecoder,
    },
    #[error(
        "{}: a scoring model needs a `pad_token_id` that no sequence ends in; it is {}, sequences \
         end in {ends:?}; add a padding token to the tokenizer",
        .file.display(),
        shown(.found)
    )]
    ScoringPad {
        file: PathBuf,
        found: Option<u32>,
        ends: Vec<u32>,
    },
    #[error(
        "{}: base_model_name_or_path is {found:?}, and there is no such folder, neither relative \
         to this file nor to the working directory; set it to the folder of the model that the \
         adapter was trained on",
        .file.display()
    )]
    NoBase { file: PathBuf, found: String },
    #[error(
        "{}: the base model {} is an adapter itself; merge that one first (collimate export)",
        .file.display(),
        .base.display()
    )]
    AdaptedBase { file: PathBuf, base: PathBuf },
    #[error(
        "{}: holds a whole model and an adapter (adapter_config.json), so it is not clear which of \
         them is meant; move the adapter, or the model's config.json and weights, to another \
         folder",
        .0.display()
    )]
    ModelAndAdapter(PathBuf),
    /// The tokenizer beside an adapter cannot be read.
    #[error(transparent)]
    Tokenizer(Box<DataError>),
    /// A file cannot be written; the error names it.
    #[error(transparent)]
    Write(#[from] std::io::Error),
}

fn shown(id: &Option<u32>) -> String {
    id.map_or("not set".to_owned(), |id| id.to_string())
}

impl HfConfig {
    /// The configuration of a model made from scratch; generation stops at its `eos_token_ids`.
    pub fn new(decoder: DecoderConfig) -> Self {
        HfConfig {
            stop_ids: decoder.eos_token_ids.clone(),
            score_at: ScoreAt::Eos,
            decoder,
            config: Map::new(),
            generation: Map::new(),
        }
    }

    /// Reads `config.json` in `folder`, and `generation_config.json` if there is one. A PEFT folder
    /// without `config.json` has the configuration of its base, with the head that the adapter was
    /// trained for.
    ///
    /// # Errors
    /// If a file is missing or not JSON, or a key is missing, has the wrong type or an unsupported
    /// value.
    pub fn read(folder: &Path) -> Result<Self, HfConfigError> {
        match AdapterConfig::find(folder)? {
            Some(adapter) if !folder.join(CONFIG).is_file() => {
                Self::read_adapted(&adapter.base_folder(folder)?, folder, adapter.head)
            }
            _ => Self::read_from(folder, folder),
        }
    }

    /// The configuration of the model in `base` with the adapter in `folder`, which turns it into a
    /// model with this head and may have its own `generation_config.json`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_adapted(base: &Path, folder: &Path, head: Head) -> Result<Self, HfConfigError> {
        let own = folder.join(GENERATION_CONFIG).is_file();
        let mut config = Self::read_from(base, if own { folder } else { base })?;
        if head == Head::Score {
            config.decoder.head = Head::Score;
            config.take_padding(folder)?;
        }
        Ok(config)
    }

    /// Adds tokens at which generation stops.
    pub fn stop_also(&mut self, ids: impl IntoIterator<Item = u32>) {
        for id in ids {
            let is_token = (id as usize) < self.decoder.vocab_size;
            if is_token && !self.stop_ids.contains(&id) {
                self.stop_ids.push(id);
            }
        }
    }

    /// Takes the padding token from the tokenizer of the reward adapter in `folder`, if it has one:
    /// PEFT writes no `config.json`, and the base's describes another model. Updates `score_at`
    /// accordingly.
    ///
    /// # Errors
    /// If the tokenizer cannot be read.
    pub fn take_padding(&mut self, folder: &Path) -> Result<(), HfConfigError> {
        if folder.join("tokenizer.json").is_file() {
            let tokenizer =
                Tokenizer::load(folder).map_err(|e| HfConfigError::Tokenizer(Box::new(e)))?;
            self.stop_also(tokenizer.end_ids());
            self.decoder.pad_token_id = tokenizer.pad_id().or(self.decoder.pad_token_id);
        }
        self.score_at = self.meant_score_at();
        Ok(())
    }

    /// Adds the end tokens of a reward model's own tokenizer, so that it is known whether its
    /// padding token is one. A tokenizer that cannot be read is reported when text is tokenised.
    fn take_ends(&mut self, folder: &Path) {
        let known = self
            .decoder
            .pad_token_id
            .is_none_or(|pad| self.ends_sequences(pad));
        if !known && folder.join("tokenizer.json").is_file() {
            let ends = Tokenizer::load(folder).map(|tokenizer| tokenizer.end_ids());
            self.stop_also(ends.unwrap_or_default());
        }
    }

    /// The score is read before the padding token if this token also ends sequences.
    fn meant_score_at(&self) -> ScoreAt {
        let pad = self.decoder.pad_token_id;
        match pad.is_some_and(|pad| self.ends_sequences(pad)) {
            true if self.decoder.head == Head::Score => ScoreAt::LastNonPad,
            _ => ScoreAt::Eos,
        }
    }

    /// Takes stop ids and generation settings from the `generation_config.json` in `folder`, if it
    /// has one.
    ///
    /// # Errors
    /// If the file is not JSON, or a key has the wrong type.
    pub fn take_generation(&mut self, folder: &Path) -> Result<(), HfConfigError> {
        let file = folder.join(GENERATION_CONFIG);
        if !file.is_file() {
            return Ok(());
        }
        let generation = read_object(&file)?;
        let ids = JsonFields::new(&file, &generation).token_ids("eos_token_id")?;
        if !ids.is_empty() {
            self.stop_ids = union(ids, &self.decoder.eos_token_ids);
        }
        self.generation = generation;
        Ok(())
    }

    /// Reads `config.json` in `folder` and `generation_config.json` in `generation`.
    fn read_from(folder: &Path, generation: &Path) -> Result<Self, HfConfigError> {
        let file = folder.join(CONFIG);
        let config = read_object(&file)?;
        let fields = JsonFields::new(&file, &config);
        let decoder = parse::decoder(&fields)?;
        say_unread(&file, &keys::unread(&fields, decoder.family));
        let file = generation.join(GENERATION_CONFIG);
        let generation = if file.is_file() {
            read_object(&file)?
        } else {
            Map::new()
        };
        let ids = JsonFields::new(&file, &generation).token_ids("eos_token_id")?;
        let mut read = HfConfig {
            stop_ids: union(ids, &decoder.eos_token_ids),
            score_at: ScoreAt::Eos,
            decoder,
            config,
            generation,
        };
        if read.decoder.head == Head::Score {
            read.take_ends(folder);
        }
        read.score_at = read.meant_score_at();
        Ok(read)
    }

    /// A `pad_token_id` for a scoring model: its own, else the BOS token, if no sequence ends in
    /// it.
    ///
    /// transformers scores the last token that is not padding, so a padding token that is also an
    /// end token (common among chat models) would move the score to the token before the end.
    /// `None` if neither token is suitable.
    pub fn scoring_pad_id(&self) -> Option<u32> {
        [self.decoder.pad_token_id, self.decoder.bos_token_id]
            .into_iter()
            .flatten()
            .find(|&id| self.can_pad_scores(id))
    }

    /// Whether a token can pad sequences of a model that is scored at their last token.
    pub fn can_pad_scores(&self, id: u32) -> bool {
        !self.ends_sequences(id) && (id as usize) < self.decoder.vocab_size
    }

    fn ends_sequences(&self, id: u32) -> bool {
        self.stop_ids.contains(&id) || self.decoder.eos_token_ids.contains(&id)
    }
}

/// The ids of both lists in order, each once.
fn union(mut ids: Vec<u32>, more: &[u32]) -> Vec<u32> {
    ids.extend(more);
    let mut seen = BTreeSet::new();
    ids.retain(|&id| seen.insert(id));
    ids
}

/// Notes the keys that are ignored, as in transformers.
fn say_unread(file: &Path, keys: &[&str]) {
    if !keys.is_empty() {
        let (file, keys) = (file.display(), keys.join(", "));
        terminal::note_once(format!(
            "{file}: these keys are ignored; they may belong to another kind of model: {keys}"
        ));
    }
}

fn read_object(file: &Path) -> Result<Map<String, Value>, HfConfigError> {
    let text = regular::read(file).map_err(|source| HfConfigError::Read {
        file: file.to_owned(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| HfConfigError::Syntax {
        file: file.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
