//! The configuration file: read, resolved and checked.
//!
//! One TOML file has a table for each stage, and three tables that all stages share. It is read in
//! four steps: parse it and apply overrides ([`Document`]); refuse unknown names and wrong types;
//! fill values that depend on other keys; check ranges and combinations. Stages see only the
//! result, a [`Config`].
//!
//! No model or data file is opened here. [`Config::check_files`] checks that named files exist, so
//! that a run of hours does not end at a misspelt path.

mod bounds;
mod check;
mod data;
pub mod diff;
mod document;
mod dpo;
mod error;
mod example_keys;
mod generation;
mod hub;
mod lora;
mod model;
mod names;
mod notes;
mod optim;
mod order;
mod orpo;
mod overrides;
mod ppo;
mod pretrain;
mod reads;
mod records;
pub mod reference;
mod reward;
mod rewards;
mod run;
mod score_at;
mod sft;
mod stage;
mod tokenizer;
mod trainable;
mod trl_defaults;
mod words;
mod written;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

pub use check::{Checker, Keys, model_below};
pub use data::{Data, DataSource, HeldOut};
pub use document::Document;
pub use dpo::Dpo;
pub use error::{ConfigError, Problem, Problems, ValueOrigin};
pub use example_keys::{ExampleKeys, ExampleKeysMut, ExampleTable};
pub use generation::Generation;
pub use hub::HubName;
pub use lora::{LayersToTransform, LoraTable, TargetModules};
pub use model::{Architecture, Family, ModelConfig, ModelStart, SaveDtype};
pub use optim::{LrScheduler, Recompute, Training, TrainingLength};
pub use orpo::Orpo;
pub use overrides::Override;
pub use ppo::{
    AdvantageEstimator, Critic, CriticFrom, KlControllerKind, KlIn, Ppo, PpoEvaluation,
    PpoObjective, PpoUpdate, Ptx, Rollout, ScoreNormalization, ScoreShaping, Share, Sharing,
    keeps_one_of,
};
pub use pretrain::Pretrain;
pub use records::{BadRecords, Columns, RecordKeys, TooLong};
pub use reward::Reward;
pub use rewards::{
    ClassifierInput, ClassifierOutput, ClassifierReward, EnsembleReward, ExactReward, HttpReward,
    JsonReward, LONGEST_BACKOFF, Label, LengthReward, ModelReward, NumericReward, ProgramReward,
    RegexReward, RepetitionReward, RewardComponent, RewardKind, TextUnit,
};
pub use run::{Arithmetic, Device, Run};
pub use score_at::ScoreAt;
pub use sft::{Learn, Sft};
pub(crate) use stage::for_each_stage;
pub use stage::{Stage, StageTable};
pub use tokenizer::TokenizerTable;
pub use trainable::Trainable;
pub use words::from_word;

/// A resolved and checked configuration: every value is the one that the run uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Config {
    /// `[run]`.
    pub run: Run,
    /// `[model]`.
    pub model: ModelConfig,
    /// `[tokenizer]`.
    pub tokenizer: TokenizerTable,
    /// `[pretrain]`, if the configuration has this stage.
    pub pretrain: Option<Pretrain>,
    /// `[sft]`, if the configuration has this stage.
    pub sft: Option<Sft>,
    /// `[dpo]`, if the configuration has this stage.
    pub dpo: Option<Dpo>,
    /// `[orpo]`, if the configuration has this stage.
    pub orpo: Option<Orpo>,
    /// `[reward]`, if the configuration has this stage.
    pub reward: Option<Reward>,
    /// `[judge]`, if the configuration has this stage.
    pub judge: Option<Reward>,
    /// `[ppo]`, if the configuration has this stage.
    pub ppo: Option<Ppo>,
}

impl Config {
    /// Reads `file`, applies `overrides` (the last of a key wins), resolves and checks.
    ///
    /// # Errors
    /// [`ConfigError`], with all problems of the file at once where it is TOML at all.
    pub fn load(file: &Path, overrides: &[Override]) -> Result<Self, ConfigError> {
        Self::resolve(&Document::read(file)?.with(overrides)?)
    }

    /// Resolves and checks a parsed file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn resolve(document: &Document) -> Result<Self, ConfigError> {
        let mut checker = Checker::new(document);
        check_tables(document, &mut checker);
        bounds::check(document, &mut checker);
        let model: model::ModelTable = document.lower("model", &mut checker)?;
        let mut config = Self {
            run: document.lower("run", &mut checker)?,
            tokenizer: document.lower("tokenizer", &mut checker)?,
            ..Self::default()
        };
        config.lower_stages(document, &mut checker)?;
        if let Some(ppo) = &mut config.ppo {
            ppo.rewards = rewards::lower(document, &mut checker)?;
        }
        // Values are checked only once all of them have the right types.
        checker.finish()?;
        config.model = model.lower(document, &mut checker)?;
        config.fill(&mut checker);
        config.check(&mut checker);
        checker.finish()?;
        Ok(config)
    }

    /// The stages that the configuration has, in the order in which they run.
    pub fn stages(&self) -> Vec<Stage> {
        Stage::ALL
            .into_iter()
            .filter(|stage| self.has(*stage))
            .collect()
    }

    /// Whether the configuration has `stage`.
    pub fn has(&self, stage: Stage) -> bool {
        self.table(stage).is_some()
    }

    /// The keys of `stage` that every stage has, if the configuration has it.
    pub fn training(&self, stage: Stage) -> Option<&Training> {
        self.table(stage).map(StageTable::training)
    }

    /// The configuration as TOML, every value written out. Reading it gives the same configuration.
    ///
    /// # Errors
    /// If a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        written::to_toml(self)
    }

    /// Fills unset keys from other keys and other tables.
    fn fill(&mut self, checker: &mut Checker<'_>) {
        for stage in Stage::ALL {
            self.fill_start(stage, checker);
        }
        let trained = |stage| self.has(stage).then(|| self.run.final_model(stage));
        let (scorer, judge) = (trained(Stage::Reward), trained(Stage::Judge));
        if let Some(ppo) = &mut self.ppo {
            ppo.fill(scorer, judge, checker);
        }
    }

    /// Fills the `from` of a stage if it is unset.
    fn fill_start(&mut self, stage: Stage, checker: &mut Checker<'_>) {
        let usual = self.usual_start(stage);
        let from = self.table_mut(stage).and_then(StageTable::start_mut);
        let Some(from) = from.filter(|from| from.as_os_str().is_empty()) else {
            return;
        };
        match usual {
            Some(folder) => *from = folder,
            None => {
                let mend = match self.tuned_on_preferences()[..] {
                    [tuned, ..] if stage > tuned => format!(
                        "for the model of [{tuned}], set it to \"{}\"",
                        self.run.final_model(tuned).display()
                    ),
                    _ => "there is no model to start from; set it or model.from, or add [pretrain]"
                        .to_owned(),
                };
                checker.table(stage.name()).missing("from", &mend);
            }
        }
    }

    /// The model of the nearest earlier stage of the configuration, or `model.from`.
    fn usual_start(&self, stage: Stage) -> Option<PathBuf> {
        match stage.starts_after() {
            Some(earlier) if self.has(earlier) => Some(self.run.final_model(earlier)),
            Some(earlier) => self.usual_start(earlier),
            None => {
                let given = self.model.start.as_ref().and_then(ModelStart::folder);
                given.map(Path::to_path_buf)
            }
        }
    }

    /// Checks ranges and combinations, table by table.
    fn check(&self, checker: &mut Checker<'_>) {
        self.run.check(checker);
        self.tokenizer.check(self.trains_tokenizer(), checker);
        if self.stages().is_empty() {
            checker.no_stage();
        }
        self.check_pretrain_start(checker);
        for stage in Stage::ALL {
            let table = self.table(stage);
            table.iter().for_each(|t| t.check(stage.name(), checker));
        }
    }

    /// True if `[pretrain]` trains a tokenizer; false if the run reads an existing one.
    fn trains_tokenizer(&self) -> bool {
        let read = self.model.start.as_ref().and_then(ModelStart::folder);
        self.pretrain.is_some() && self.tokenizer.from.is_none() && read.is_none()
    }

    fn check_pretrain_start(&self, checker: &mut Checker<'_>) {
        let Some(pretrain) = &self.pretrain else {
            return;
        };
        let mut keys = checker.table("model");
        let Some(start) = &self.model.start else {
            return keys.missing(
                "hidden_size",
                "pretrain needs the sizes of a model, or a folder as model.from",
            );
        };
        let ModelStart::Scratch(architecture) = start else {
            return;
        };
        let longest = architecture.max_position_embeddings;
        if let Some(size) = architecture.vocab_size
            && self.tokenizer.from.is_none()
            && size < self.tokenizer.vocab_size
        {
            let message = format!(
                "is below tokenizer.vocab_size = {}; raise or remove it",
                self.tokenizer.vocab_size
            );
            keys.wrong("vocab_size", size, message);
        }
        if pretrain.context_length > longest {
            let message = format!(
                "is above model.max_position_embeddings = {longest}; lower it, or raise that"
            );
            checker
                .table("pretrain")
                .wrong("context_length", pretrain.context_length, message);
        }
    }
}

fn check_tables(document: &Document, checker: &mut Checker<'_>) {
    for (name, value) in document.tables() {
        match (names::tables().any(|known| known == name), value.is_table()) {
            (true, true) => {}
            (true, false) => checker.not_a_table(name),
            (false, _) => checker.unknown_table(name, value),
        }
    }
}

/// A path; the empty path is `None`.
fn optional_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = Option::<PathBuf>::deserialize(deserializer)?;
    Ok(path.filter(|path| !path.as_os_str().is_empty()))
}

#[cfg(test)]
mod tests;
