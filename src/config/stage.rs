//! The list of the stages of a run, and the trait of their tables.

use std::fmt;
use std::path::{Path, PathBuf};

use super::check::Checker;
use super::document::Document;
use super::example_keys::{ExampleKeys, ExampleKeysMut, ExampleTable};
use super::lora::LoraTable;
use super::optim::Training;
use super::{Config, ConfigError, ModelConfig, TokenizerTable};

/// Passes the list of the stages, in the order in which they run, to the macro `$callback`. An
/// entry has the variant of [`Stage`], the name of its table, command and folder, and the type of
/// its keys.
macro_rules! for_each_stage {
    ($callback:ident) => {
        $callback! {
            /// Next-token training on text.
            Pretrain, pretrain: crate::config::Pretrain;
            /// Fine-tuning on answers.
            Sft, sft: crate::config::Sft;
            /// Tuning the policy on preferences, without a reward model.
            Dpo, dpo: crate::config::Dpo;
            /// Tuning the policy on preferences, without a reference.
            Orpo, orpo: crate::config::Orpo;
            /// Training the reward model.
            Reward, reward: crate::config::Reward;
            /// Training the reward model that only evaluations use.
            Judge, judge: crate::config::Reward;
            /// Tuning the policy on scores.
            Ppo, ppo: crate::config::Ppo;
        }
    };
}
pub(crate) use for_each_stage;

/// The table of a stage.
pub trait StageTable {
    /// The keys of every stage.
    fn training(&self) -> &Training;

    /// Reports values out of range and keys that exclude each other; `table` is the table's name.
    fn check(&self, table: &'static str, checker: &mut Checker<'_>);

    /// The keys of a stage that learns from examples; `None` for the others.
    fn examples(&self) -> Option<ExampleKeys<'_>> {
        None
    }

    /// The keys of a stage that learns from examples, mutable.
    fn examples_mut(&mut self) -> Option<ExampleKeysMut<'_>> {
        None
    }

    /// The folder of the model that the stage starts from; `None` for a stage that can initialise
    /// its own.
    fn start(&self) -> Option<&Path> {
        self.examples().map(|keys| keys.from)
    }

    /// The folder of the model that the stage starts from, mutable.
    fn start_mut(&mut self) -> Option<&mut PathBuf> {
        self.examples_mut().map(|keys| keys.from)
    }

    /// The adapters that the stage trains, if it trains adapters.
    fn lora(&self) -> Option<&LoraTable> {
        self.examples()?.trainable.lora.as_ref()
    }

    /// The data files that the stage reads, by key.
    fn data_files(&self) -> Vec<(&'static str, &Path)> {
        self.examples().map_or_else(Vec::new, ExampleKeys::files)
    }

    /// The model folders that the stage reads, by key.
    fn models(&self) -> Vec<(&'static str, &Path)> {
        let from = self.start().into_iter();
        from.map(|folder| ("from", folder)).collect()
    }

    /// The model folders that the stage reads, mutable.
    fn models_mut(&mut self) -> Vec<&mut PathBuf> {
        self.start_mut().into_iter().collect()
    }
}

impl<T: ExampleTable> StageTable for T {
    fn training(&self) -> &Training {
        self.keys().training
    }

    fn check(&self, table: &'static str, checker: &mut Checker<'_>) {
        let mut keys = checker.table(table);
        self.keys().check::<T>(&mut keys);
        self.check_own(&mut keys);
    }

    fn examples(&self) -> Option<ExampleKeys<'_>> {
        Some(self.keys())
    }

    fn examples_mut(&mut self) -> Option<ExampleKeysMut<'_>> {
        Some(self.keys_mut())
    }
}

/// The tables of a configuration that name models, mutable.
pub(super) struct TablesMut<'a> {
    pub model: &'a mut ModelConfig,
    pub tokenizer: &'a mut TokenizerTable,
    pub stages: Vec<(Stage, &'a mut dyn StageTable)>,
}

macro_rules! stages {
    ($($(#[$doc:meta])* $stage:ident, $table:ident: $keys:ty;)*) => {
        /// A stage of a run; the order is the order in which they run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Stage {
            $($(#[$doc])* $stage,)*
        }

        impl Stage {
            /// All stages in the order in which they run.
            pub const ALL: [Self; [$(stringify!($stage)),*].len()] = [$(Self::$stage),*];

            /// The number of sequences of one of the stage's examples: 2 for pairs; `None` for a
            /// stage that does not learn from examples.
            pub fn sequences(self) -> Option<usize> {
                match self {
                    $(Self::$stage => {
                        <$keys>::default().examples().map(|keys| keys.sequences)
                    })*
                }
            }

            /// Name of the stage's table, command and folder.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$stage => stringify!($table),)*
                }
            }
        }

        impl Config {
            /// The table of `stage`, if the configuration has it.
            pub fn table(&self, stage: Stage) -> Option<&dyn StageTable> {
                match stage {
                    $(Stage::$stage => self.$table.as_ref().map(|keys| keys as &dyn StageTable),)*
                }
            }

            /// The tables of the stages that the configuration has, after `[model]` and
            /// `[tokenizer]`.
            pub(super) fn tables_mut(&mut self) -> TablesMut<'_> {
                let mut stages = Vec::<(Stage, &mut dyn StageTable)>::new();
                $(if let Some(keys) = &mut self.$table {
                    stages.push((Stage::$stage, keys));
                })*
                TablesMut {
                    model: &mut self.model,
                    tokenizer: &mut self.tokenizer,
                    stages,
                }
            }

            /// Removes the table of `stage`.
            pub fn remove(&mut self, stage: Stage) {
                match stage {
                    $(Stage::$stage => self.$table = None,)*
                }
            }

            /// Reads the tables of the stages that `document` has.
            pub(super) fn lower_stages(
                &mut self,
                document: &Document,
                checker: &mut Checker<'_>,
            ) -> Result<(), ConfigError> {
                $(if document.has(stringify!($table)) {
                    self.$table = Some(document.lower(stringify!($table), checker)?);
                })*
                Ok(())
            }
        }
    };
}
for_each_stage!(stages);

impl Config {
    /// The table of `stage`, mutable, if the configuration has it.
    pub fn table_mut(&mut self, stage: Stage) -> Option<&mut dyn StageTable> {
        let mut stages = self.tables_mut().stages.into_iter();
        let found = stages.find(|(own, _)| *own == stage);
        found.map(|(_, table)| table)
    }
}

impl Stage {
    /// The stage whose model this one starts from if its `from` is unset.
    pub(super) fn starts_after(self) -> Option<Self> {
        match self {
            Self::Pretrain => None,
            Self::Sft => Some(Self::Pretrain),
            _ => Some(Self::Sft),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
