//! Parse, run, report the error chain.

#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::process::ExitCode;

use collimate::cli::Cli;
use collimate::commands;
use collimate::data::guard::CountingAllocator;
use collimate::terminal;
use collimate::train::process;
use collimate::train::signal::{EXIT_STOPPED, Outcome};

/// glibc returns large blocks to the kernel and faults them in again, which training would do all
/// the time. The memory of threads that read untrusted files is counted.
#[global_allocator]
static ALLOCATOR: CountingAllocator<mimalloc::MiMalloc> = CountingAllocator(mimalloc::MiMalloc);

fn main() -> ExitCode {
    process::set_up();
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(usage) => return explain(&usage),
    };
    if cli.quiet {
        terminal::be_quiet();
    }
    match commands::run(&cli.command) {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Stopped) => ExitCode::from(EXIT_STOPPED),
        Err(error) => failed(&error),
    }
}

/// Prints help, the version, or the error in the arguments (exit code 2).
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

/// Prints the error and its causes.
fn failed(error: &anyhow::Error) -> ExitCode {
    terminal::error(format_args!("error: {error}"));
    let causes = error.chain().skip(1);
    causes.for_each(|cause| terminal::error(format_args!("  caused by: {cause}")));
    ExitCode::FAILURE
}
