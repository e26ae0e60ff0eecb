//! `collimate plan`: the memory of each stage, computed and, with `--probe`, measured.

use crate::cli::{PlanArgs, Trials};
use crate::config::{Config, Document};
use crate::stages::plan::machine::MemoryBound;
use crate::stages::plan::not_counted;
use crate::stages::{preflight, probe, warnings};
use crate::terminal::{self, Reader};
use crate::train::run_folder::Existing;
use crate::train::signal::Outcome;

/// Prints the tables first, even for a run that does not fit: they show where memory goes.
///
/// # Errors
/// A configuration, model or data file that is wrong, a stage that would not start or does not fit,
/// or output that cannot be written.
pub fn plan(args: &PlanArgs) -> anyhow::Result<Outcome> {
    let document = Document::read(&args.config)?.with(&args.overrides)?;
    let config = Config::resolve(&document)?;
    config.notes().into_iter().for_each(terminal::note);
    warnings(&config).into_iter().for_each(terminal::note);
    let stages = config.stages();
    let plans = preflight::plans(&config, &stages, Existing::Continue).or_else(|error| {
        // The key of a file that does not exist says more than the error of reading it.
        config.check_files(&document, &stages)?;
        Err(error)
    })?;
    let fits = preflight::check(&config, &plans, MemoryBound::Longest, Existing::Continue);
    let tables = plans.iter().map(ToString::to_string);
    for text in tables.chain([not_counted(&config)]) {
        if terminal::product(format_args!("{text}\n"))? == Reader::Gone {
            break;
        }
    }
    if args.trials() == Trials::None {
        config.check_files(&document, &stages)?;
        fits?;
        return Ok(Outcome::Finished);
    }
    // The probe reports missing files itself.
    fits?;
    let Some(probed) = probe(&config, &plans)? else {
        return Ok(Outcome::Stopped);
    };
    // The last line: a closed pipe does not matter.
    let _ = terminal::product(probed)?;
    Ok(Outcome::Finished)
}
