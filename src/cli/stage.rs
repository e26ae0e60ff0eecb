//! The commands that run one stage: one for each stage.

use clap::{ArgMatches, Args, Error, FromArgMatches, Subcommand};

use super::ConfigArgs;
use crate::config::Stage;
use crate::stages::{CommandHelp, help};

/// A command that runs one stage.
#[derive(Debug)]
pub struct StageCommand {
    /// The stage.
    pub stage: Stage,
    /// The command's flags.
    pub args: ConfigArgs,
}

fn named(name: &str) -> Option<Stage> {
    Stage::ALL.into_iter().find(|stage| stage.name() == name)
}

fn command(stage: Stage) -> clap::Command {
    let CommandHelp {
        about,
        details,
        example,
    } = help(stage);
    ConfigArgs::augment_args(clap::Command::new(stage.name()))
        .about(about)
        .long_about(format!("{about}\n\n{details}"))
        .after_help(format!("Example:\n  {example}"))
}

impl Subcommand for StageCommand {
    fn augment_subcommands(all: clap::Command) -> clap::Command {
        all.subcommands(Stage::ALL.map(command))
    }

    fn augment_subcommands_for_update(all: clap::Command) -> clap::Command {
        Self::augment_subcommands(all)
    }

    fn has_subcommand(name: &str) -> bool {
        named(name).is_some()
    }
}

impl FromArgMatches for StageCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let found = matches.subcommand();
        let found = found.and_then(|(name, args)| Some((named(name)?, args)));
        let Some((stage, args)) = found else {
            return Err(Error::new(clap::error::ErrorKind::InvalidSubcommand));
        };
        Ok(Self {
            stage,
            args: ConfigArgs::from_arg_matches(args)?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
