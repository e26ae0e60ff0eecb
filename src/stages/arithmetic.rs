//! How a run computes its products, and whether a stage goes on as it began.
//!
//! `run.arithmetic = "fast"` means what the processor has, so a run that moves to another processor may go on in other sums: as
//! accurate, but not the same bits. That is said, not refused.

use std::fs;

use anyhow::{Context as _, Result};

use crate::config::{self, Config, Stage};
use crate::ops::product::Arithmetic;
use crate::train::run_folder::StageFolder;

/// That of all products of a run on this processor.
pub fn of(config: &Config) -> Arithmetic {
    match config.run.arithmetic {
        config::Arithmetic::Fast => Arithmetic::fastest(),
        config::Arithmetic::Portable => Arithmetic::Chains,
    }
}

/// Notes in the stage's folder what is current, and says so on the terminal where the stage was begun in another.
///
/// # Errors
/// If the note cannot be read or written.
pub fn note(stage: Stage, files: &StageFolder) -> Result<()> {
    let (file, now) = (files.arithmetic(), Arithmetic::current().name());
    if file.exists() {
        let then =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if then.trim() != now {
            eprintln!(
                "{stage}: was begun with products as {}, and goes on with {now}: as accurate, but not in the bits that it would \
                 have ended in where it began; run.arithmetic = \"portable\" gives the same on every processor",
                then.trim()
            );
        }
    }
    Ok(files.write_arithmetic(now)?)
}
