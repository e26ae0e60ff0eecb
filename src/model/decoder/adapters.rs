//! Decoders that consist of a frozen base and their own adapters.
//!
//! Everything except the adapters, and the scalar head of a reward model, belongs to the base and
//! is held once for all decoders on it.

use std::collections::BTreeSet;
use std::path::Path;

use super::Decoder;
use super::assembly::{Fallible, TensorSource};
use crate::config::LoraTable;
use crate::model::ModelError;
use crate::model::config::{Head, SCORE, TensorSpec, weight};
use crate::model::fingerprint::Fingerprint;
use crate::model::hf_config::adapter::AdapterConfig;
use crate::model::init::fresh;
use crate::model::lora::folder::{self, AdapterFolder};
use crate::model::lora::{Lora, LoraError};
use crate::model::weights::SaveDtype;
use crate::ops::param::Trainability;
use crate::terminal;

impl Decoder {
    /// `base` with new adapters, a function of `seed`, which do not change the result yet. A scalar
    /// head starts as the base's, or is drawn from `seed`.
    ///
    /// # Errors
    /// If the base is trained or adapted itself, lacks a target, or is a reward model where a
    /// language model is requested.
    pub fn adapt(
        base: &Decoder,
        table: &LoraTable,
        head: Head,
        seed: u64,
        training: Trainability,
    ) -> Fallible<Self> {
        let lora = Lora::new(table, base.decoder_config())?;
        let values = |spec: &TensorSpec| match base.params().find(&spec.name) {
            Some(param) => Ok(param.read(<[f32]>::to_vec)?),
            None => Ok(fresh(spec, seed)),
        };
        Self::on_base(base, lora, head, training, values)
    }

    /// `base` with the adapters of a PEFT folder. A scalar head that the folder lacks starts as the
    /// base's, or is drawn from `seed`.
    ///
    /// # Errors
    /// As [`Self::adapt`]; if a file is missing or wrong, or the adapters were trained on another
    /// base.
    pub fn load_adapter(
        base: &Decoder,
        folder: &Path,
        head: Head,
        seed: u64,
        training: Trainability,
    ) -> Fallible<Self> {
        let adapter = AdapterFolder::open(folder, base.decoder_config())?;
        if head == Head::LanguageModel && adapter.config.head == Head::Score {
            let (found, needed) = (
                "the adapter of a reward model",
                "the adapter of a language \
                                    model",
            );
            return Err(ModelError::Kind {
                folder: folder.to_owned(),
                found,
                needed,
            });
        }
        if training == Trainability::Trained && adapter.config.lora_dropout > 0.0 {
            let (folder, dropout) = (folder.display(), adapter.config.lora_dropout);
            terminal::note_once(format!(
                "{folder}: the adapter was trained with lora_dropout = {dropout}; training \
                 continues without dropout"
            ));
        }
        let values = |spec: &TensorSpec| match base.params().find(&spec.name) {
            _ if adapter.has(&spec.name) || spec.name != weight(SCORE) => Ok(adapter.load(spec)?),
            Some(param) => Ok(param.read(<[f32]>::to_vec)?),
            None => Ok(fresh(spec, seed)),
        };
        let mut adapted = Self::on_base(base, adapter.lora.clone(), head, training, values)?;
        // The adapter was trained to end answers at these tokens.
        adapted.config_mut().take_generation(folder)?;
        if adapter.config.head == Head::Score {
            adapted.config_mut().take_padding(folder)?;
        }
        adapter.check_base(|| Ok(base.fingerprint_under(adapter.config.head)?))?;
        Ok(adapted)
    }

    fn on_base(
        base: &Decoder,
        lora: Lora,
        head: Head,
        training: Trainability,
        values: impl Fn(&TensorSpec) -> Fallible<Vec<f32>>,
    ) -> Fallible<Self> {
        if base.lora.is_some() {
            return Err(LoraError::Adapted.into());
        }
        if base.params().trained().next().is_some() {
            return Err(LoraError::Trained.into());
        }
        let mut config = base.config().clone();
        if head == Head::LanguageModel && config.decoder.head == Head::Score {
            return Err(LoraError::RewardModel.into());
        }
        config.decoder.head = head;
        let own = |name: &str| name == weight(SCORE) || base.params().find(name).is_none();
        let source = |spec: &TensorSpec| match own(&spec.name) {
            true => Ok(TensorSource::Values(values(spec)?, training)),
            false => Ok(TensorSource::Shared(base.params().get(&spec.name)?)),
        };
        Self::assemble_adapted(config, Some(lora), source, base.params().backend())
    }

    /// Checks that the decoder's adapters, read from the PEFT folder `from`, have the settings of
    /// the table called `name`.
    ///
    /// # Errors
    /// As [`Lora::check`].
    pub fn check_adapters(
        &self,
        table: &LoraTable,
        name: &str,
        from: &Path,
    ) -> Result<(), LoraError> {
        let found = self.lora().ok_or(LoraError::Missing)?;
        found.check(table, name, self.decoder_config(), from)
    }

    /// The decoder's adapters, if it has any.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    /// The fingerprint of the tensors that an adapted model with this head shares with its base.
    fn fingerprint_under(&self, head: Head) -> candle_core::Result<Fingerprint> {
        let mut config = self.decoder_config().clone();
        config.head = head;
        let names = config.tensors().into_iter().map(|spec| spec.name);
        let names: BTreeSet<String> = names.filter(|name| *name != weight(SCORE)).collect();
        Fingerprint::of(self.params().iter().filter(|p| names.contains(p.name())))
    }

    /// Writes the adapters as a PEFT folder, for a language model with a `generation_config.json`.
    /// `base` is the folder of the base model, recorded as an absolute path. There is no
    /// `config.json`, because transformers would then expect a whole model in the folder.
    ///
    /// # Errors
    /// If the decoder has no adapters or a file cannot be written.
    pub fn save_adapter(&self, folder: &Path, base: &Path, dtype: SaveDtype) -> Fallible<()> {
        let Some(lora) = &self.lora else {
            return Err(LoraError::Missing.into());
        };
        let base = std::fs::canonicalize(base).unwrap_or_else(|_| base.to_owned());
        let decoder = self.decoder_config();
        let config = AdapterConfig {
            base: base.display().to_string(),
            r: lora.r,
            lora_alpha: lora.lora_alpha,
            use_rslora: lora.use_rslora,
            lora_dropout: 0.0,
            head: decoder.head,
        };
        let (fingerprint, fetch) = (self.fingerprint_under(decoder.head)?, |name: &str| {
            self.own_values(name)
        });
        folder::save(folder, &config, lora, decoder, dtype, fingerprint, fetch)?;
        Ok(self.config().write_generation(folder)?)
    }
}
