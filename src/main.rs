//! Parse, load, dispatch, report the error chain.

use std::process::ExitCode;

use clap::Parser;
use collimate::cli::{Cli, Command, ConfigArgs, PlanArgs, Trials};
use collimate::config::{Config, Document, Stage};
use collimate::ops::profile;
use collimate::train::process;
use collimate::train::signal::{EXIT_STOPPED, Outcome};
use collimate::{commands, stages};

/// glibc gives large blocks back to the kernel and faults them in again; training allocates them
/// all the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    process::set_up();
    // Wrong usage ends here, with code 2.
    let cli = Cli::parse();
    match dispatch(&cli.command) {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Stopped) => ExitCode::from(EXIT_STOPPED),
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Run(args) => {
            let config = load(args, None)?;
            stages::run(&config, args.existing())
        }
        Command::Pretrain(args) => stage(args, Stage::Pretrain),
        Command::Sft(args) => stage(args, Stage::Sft),
        Command::Dpo(args) => stage(args, Stage::Dpo),
        Command::Reward(args) => stage(args, Stage::Reward),
        Command::Judge(args) => stage(args, Stage::Judge),
        Command::Ppo(args) => stage(args, Stage::Ppo),
        Command::Plan(args) => plan(args),
        Command::Generate(args) => commands::generate(args),
        Command::Score(args) => commands::score(args),
        Command::Export(args) => commands::export(args),
    }
}

fn stage(args: &ConfigArgs, stage: Stage) -> anyhow::Result<Outcome> {
    stages::run_stage(&load(args, Some(stage))?, stage, args.existing())
}

fn plan(args: &PlanArgs) -> anyhow::Result<Outcome> {
    let config = Config::load(&args.config, &args.overrides)?;
    let plans = stages::plan::plan(&config)?;
    plans.iter().for_each(|plan| println!("{plan}\n"));
    if args.trials() == Trials::None {
        return Ok(Outcome::Finished);
    }
    let Some(probed) = stages::plan::probe(&config, &plans)? else {
        return Ok(Outcome::Stopped);
    };
    println!("{probed}");
    Ok(Outcome::Finished)
}

/// Reads the configuration and looks for the files of the one stage to run, or of all.
fn load(args: &ConfigArgs, only: Option<Stage>) -> anyhow::Result<Config> {
    if args.profile {
        profile::enable();
    }
    let document = Document::read(&args.config)?.with(&args.overrides)?;
    let config = Config::resolve(&document)?;
    match only {
        Some(stage) if !config.has(stage) => {
            anyhow::bail!(
                "{} has no [{stage}] table; add one with its keys",
                args.config.display()
            )
        }
        Some(stage) => config.check_files(&document, &[stage])?,
        None => config.check_files(&document, &config.stages())?,
    }
    Ok(config)
}

fn report(error: &anyhow::Error) {
    eprintln!("error: {error}");
    error
        .chain()
        .skip(1)
        .for_each(|cause| eprintln!("  caused by: {cause}"));
}
