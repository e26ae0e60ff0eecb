//! The commands: `run` and one for each stage, `plan`, `generate`, which completes prompts,
//! `score`, which scores texts, `export`, which merges an adapter, and `config`, which explains
//! keys.
//!
//! `generate` and `score` read and write JSON Lines. They check all input before they read weights,
//! so that a bad line costs a moment; the output file appears whole or not at all.
//!
//! Not here: the stages ([`crate::stages`]), and the flags ([`crate::cli`]).

mod config;
mod export;
mod flags;
mod generate;
mod inputs;
mod output;
mod plan;
mod run;
mod score;

use kernels::host::pool;

use crate::cli::Command;
use crate::terminal;
use crate::train::signal::Outcome;

/// Runs a command. Those without a `run.threads` run on the usual number of threads.
///
/// # Errors
/// The error of the command.
pub fn run(command: &Command) -> anyhow::Result<Outcome> {
    if !matches!(
        command,
        Command::Run(_) | Command::Stage(_) | Command::Config(_)
    ) && let Some(fewer) = pool::start_usual()?
    {
        terminal::note(format_args!("{} = {fewer}", pool::VARIABLE));
    }
    match command {
        Command::Run(args) => run::run(args),
        Command::Stage(command) => run::run_stage(command),
        Command::Plan(args) => plan::plan(args),
        Command::Config(args) => config::config(args),
        Command::Generate(args) => generate::generate(args),
        Command::Score(args) => score::score(args),
        Command::Export(args) => export::export(args),
    }
}
