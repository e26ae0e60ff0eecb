//! Parse, load, dispatch, report the error chain.

use std::io::ErrorKind;
use std::process::ExitCode;

use collimate::cli::{Cli, Command, ConfigArgs, PlanArgs, Trials};
use collimate::config::{Config, Document, Stage};
use collimate::data::guard::CountingAllocator;
use collimate::ops::{pool, profile};
use collimate::stages::plan::machine::MemoryBound;
use collimate::terminal::{self, Reader};
use collimate::train::process;
use collimate::train::signal::{EXIT_STOPPED, Outcome};
use collimate::{commands, stages};

/// glibc returns large blocks to the kernel and faults them in again, which training would do all
/// the time. The memory of threads that read untrusted files is counted.
#[global_allocator]
static ALLOCATOR: CountingAllocator<mimalloc::MiMalloc> = CountingAllocator(mimalloc::MiMalloc);

fn main() -> ExitCode {
    process::set_up();
    let ended = match Cli::read() {
        Ok(cli) => {
            if cli.quiet {
                terminal::be_quiet();
            }
            dispatch(&cli.command)
        }
        Err(usage) => return explain(&usage),
    };
    match ended {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Stopped) => ExitCode::from(EXIT_STOPPED),
        Err(error) => failed(&error),
    }
}

/// Prints help or version, or what is wrong with the arguments (exit code 2).
fn explain(usage: &clap::Error) -> ExitCode {
    let code = ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2));
    match usage.print() {
        // Help that cannot be written is a failure, unless the reader has closed the pipe.
        Err(error) if !usage.use_stderr() && error.kind() != ErrorKind::BrokenPipe => {
            failed(&anyhow::Error::new(error).context("cannot write to standard output"))
        }
        _ => code,
    }
}

fn dispatch(command: &Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Run(args) => {
            let config = load(args, None)?;
            stages::run(&config, args.existing())
        }
        Command::Stage(command) => stage(&command.args, command.stage),
        Command::Plan(args) => with_threads(|| plan(args)),
        Command::Config(args) => commands::config(args),
        Command::Generate(args) => with_threads(|| commands::generate(args)),
        Command::Score(args) => with_threads(|| commands::score(args)),
        Command::Export(args) => with_threads(|| commands::export(args)),
    }
}

/// Runs a command that has no `run.threads`, on the usual number of threads.
fn with_threads(command: impl FnOnce() -> anyhow::Result<Outcome>) -> anyhow::Result<Outcome> {
    pool::start_usual()?;
    command()
}

fn stage(args: &ConfigArgs, stage: Stage) -> anyhow::Result<Outcome> {
    stages::run_stage(&load(args, Some(stage))?, stage, args.existing())
}

/// Prints the tables first, even for a run that does not fit: they show where memory goes.
fn plan(args: &PlanArgs) -> anyhow::Result<Outcome> {
    let document = Document::read(&args.config)?.with(&args.overrides)?;
    let config = Config::resolve(&document)?;
    let plans = stages::plan::plan(&config)?;
    let fits = stages::plan::check(&config, &plans, MemoryBound::Longest);
    for plan in &plans {
        if terminal::product(format_args!("{plan}\n"))? == Reader::Gone {
            break;
        }
    }
    let probes = args.trials() != Trials::None;
    if !probes {
        // The probe reports missing files itself.
        config.check_files(&document, &config.stages())?;
    }
    fits?;
    if !probes {
        return Ok(Outcome::Finished);
    }
    let Some(probed) = stages::plan::probe(&config, &plans)? else {
        return Ok(Outcome::Stopped);
    };
    // The last line: a closed pipe does not matter.
    let _ = terminal::product(probed)?;
    Ok(Outcome::Finished)
}

/// Reads the configuration, and checks that the files of stage `only`, or of all stages, exist.
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
        None => {
            config.check_files(&document, &config.stages())?;
            config.notes().into_iter().for_each(terminal::note);
        }
    }
    Ok(config)
}

/// Prints the error and its causes.
fn failed(error: &anyhow::Error) -> ExitCode {
    terminal::error(format_args!("error: {error}"));
    let causes = error.chain().skip(1);
    causes.for_each(|cause| terminal::error(format_args!("  caused by: {cause}")));
    ExitCode::FAILURE
}
