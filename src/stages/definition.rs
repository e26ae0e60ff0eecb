//! The interface of a stage, and the definition of each stage in the list.

use anyhow::{Context as _, Result};

use super::context::{Context, Finished};
use super::first_records::RecordReader;
use super::plan::StagePlan;
use super::plan::models::RunModels;
use crate::config::{self, Config, Stage};

/// A stage, defined for the keys of its table.
pub trait StageDefinition {
    /// The help of the stage's command.
    fn help(stage: Stage) -> CommandHelp
    where
        Self: Sized;

    /// Runs the stage; `None` when a signal stopped it.
    ///
    /// # Errors
    /// If data, a model or a file is wrong, or training diverges.
    fn run(&self, context: &Context) -> Result<Option<Finished>>;

    /// The memory that the stage will take.
    ///
    /// # Errors
    /// If a model's sizes are not known, or the stage would refuse a model.
    fn plan(&self, models: RunModels, stage: Stage) -> Result<StagePlan>;

    /// Checks the models that the stage reads by their configurations, before any stage runs.
    ///
    /// # Errors
    /// The error that the stage would end with.
    fn check_models(&self, models: RunModels, stage: Stage) -> Result<()>;

    /// Checks the first records of each data file, before any stage runs.
    ///
    /// # Errors
    /// A record or a template that the stage would refuse, with the key of its file.
    fn check_records(&self, reader: &RecordReader) -> Result<()>;

    /// Whether the stage calls programs or endpoints of the user's.
    fn calls_user_code(&self) -> bool {
        false
    }

    /// Calls each program and endpoint of the user's once, before any stage runs.
    ///
    /// # Errors
    /// A program or endpoint that does not answer as it should.
    fn try_user_code(&self, _reader: &RecordReader) -> Result<()> {
        Ok(())
    }
}

/// The help of a stage's command.
#[derive(Clone, Copy, Debug)]
pub struct CommandHelp {
    /// Its line in the list of commands.
    pub about: &'static str,
    /// The paragraph below that line in the command's own help.
    pub details: &'static str,
    /// An example of the command.
    pub example: &'static str,
}

macro_rules! definitions {
    ($($(#[$doc:meta])* $stage:ident, $table:ident: $keys:ty;)*) => {
        /// The definition of `stage` with its keys.
        ///
        /// # Errors
        /// If the configuration has no such table.
        pub fn definition(config: &Config, stage: Stage) -> Result<&dyn StageDefinition> {
            let found = match stage {
                $(Stage::$stage => {
                    config.$table.as_ref().map(|keys| keys as &dyn StageDefinition)
                })*
            };
            found.with_context(|| format!("the configuration has no [{stage}] table"))
        }

        /// The help of a stage's command.
        pub fn help(stage: Stage) -> CommandHelp {
            match stage {
                $(Stage::$stage => <$keys>::help(stage),)*
            }
        }
    };
}
config::for_each_stage!(definitions);
