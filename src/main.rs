//! Parse, load, dispatch, report the error chain.

use std::process::ExitCode;

use clap::Parser;
use collimate::cli::{Cli, Command, ConfigArgs};
use collimate::config::{Config, Document, Stage};
use collimate::train::signal::{EXIT_STOPPED, Outcome};
use collimate::{commands, stages};

/// glibc gives large blocks back to the kernel and faults them in again; training allocates them
/// all the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    set_up_process();
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

/// `mi_option_purge_delay`, which the crate does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// What must be settled before anything else runs: candle's own pool would spin beside the one that does the work, and memory
/// given back between two steps is zeroed by the kernel and faulted in again in the next.
fn set_up_process() {
    // SAFETY: no other thread runs yet, and the option takes a number of milliseconds or -1 for never.
    unsafe {
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
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
        Command::Reward(args) => stage(args, Stage::Reward),
        Command::Judge(args) => stage(args, Stage::Judge),
        Command::Ppo(args) => stage(args, Stage::Ppo),
        Command::Generate(args) => commands::generate(args),
        Command::Score(args) => commands::score(args),
    }
}

fn stage(args: &ConfigArgs, stage: Stage) -> anyhow::Result<Outcome> {
    stages::run_stage(&load(args, Some(stage))?, stage, args.existing())
}

/// Reads the configuration and looks for the files of the one stage to run, or of all.
fn load(args: &ConfigArgs, only: Option<Stage>) -> anyhow::Result<Config> {
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
