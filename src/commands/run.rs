//! `collimate run` and the commands of single stages.

use anyhow::bail;

use crate::cli::{ConfigArgs, StageCommand};
use crate::config::{Config, Document};
use crate::ops::profile;
use crate::stages;
use crate::terminal;
use crate::train::signal::Outcome;

/// Runs all stages of the configuration.
///
/// # Errors
/// A configuration that is wrong, a file that does not exist, or the error of a stage.
pub fn run(args: &ConfigArgs) -> anyhow::Result<Outcome> {
    let (document, config) = read(args)?;
    config.check_files(&document, &config.stages())?;
    config.notes().into_iter().for_each(terminal::note);
    stages::warnings(&config)
        .into_iter()
        .for_each(terminal::note);
    stages::run(&config, args.existing())
}

/// Runs one stage of the configuration.
///
/// # Errors
/// The errors of [`run`], or a configuration without the stage's table.
pub fn run_stage(command: &StageCommand) -> anyhow::Result<Outcome> {
    let StageCommand { stage, args } = command;
    let (document, config) = read(args)?;
    if !config.has(*stage) {
        let file = args.config.display();
        bail!("{file} has no [{stage}] table; add one with its keys");
    }
    config.check_files(&document, &[*stage])?;
    stages::run_stage(&config, *stage, args.existing())
}

fn read(args: &ConfigArgs) -> anyhow::Result<(Document, Config)> {
    if args.profile {
        profile::enable();
    }
    let document = Document::read(&args.config)?.with(&args.overrides)?;
    let config = Config::resolve(&document)?;
    Ok((document, config))
}
