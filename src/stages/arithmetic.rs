//! Whether a stage continues with the kind of products that it began with.
//!
//! `run.arithmetic = "fast"` means what the processor has, so a run that moves to another processor
//! may go on in other sums: as accurate, but not the same bits. That is said, not refused.

use anyhow::{Context as _, Result};

use crate::config::Stage;
use crate::files::regular;
use crate::ops::product::ProductKernel;
use crate::terminal;
use crate::train::run_folder::StageFolder;

/// Writes the arithmetic that the stage begins with into its folder, and notes on the terminal if
/// it is continued with another. A stage without the file was begun with chains.
///
/// # Errors
/// If the note cannot be read or written.
pub fn note(stage: Stage, files: &StageFolder, kernel: ProductKernel) -> Result<()> {
    let (file, now) = (files.arithmetic(), kernel.name());
    if !files.has_begun() {
        return Ok(files.write_arithmetic(now)?);
    }
    let then = match file.exists() {
        true => {
            regular::read_text(&file).with_context(|| format!("cannot read {}", file.display()))?
        }
        false => ProductKernel::Chains.name().to_owned(),
    };
    if then.trim() != now {
        terminal::note(format_args!(
            "{stage}: was begun with products as {}, and goes on with {now}: as accurate, but not \
             in the bits that it would have ended in; begin a run with run.arithmetic = \
             \"portable\" if it is to move between processors",
            then.trim()
        ));
    }
    Ok(())
}
