//! Notes when a stage continues with another kernel for matrix products than it began with.
//!
//! `run.arithmetic = "fast"` selects the kernel by the processor. A run that moves to another
//! processor may therefore continue with another kernel: results are as accurate, but their bits
//! differ. This is noted, not refused.

use anyhow::{Context as _, Result};
use kernels::host::product::ProductKernel;

use crate::config::Stage;
use crate::files::regular;
use crate::terminal;
use crate::train::run_folder::StageFolder;

/// Writes the kernel's name into the folder of a stage that begins, or notes on the terminal that a
/// stage continues with another kernel.
///
/// # Errors
/// If the file cannot be read or written.
pub fn note(stage: Stage, files: &StageFolder, kernel: ProductKernel) -> Result<()> {
    let (file, now) = (files.arithmetic(), kernel.name());
    if !files.has_begun() {
        return Ok(files.write_arithmetic(now)?);
    }
    let then = regular::read_text(&file).with_context(|| {
        format!(
            "{}: cannot be read; start the stage over with --fresh",
            file.display()
        )
    })?;
    if then.trim() != now {
        terminal::note(format_args!(
            "{stage}: began with matrix products by {} and continues with {now}: as accurate, but \
             the final bits differ; to move a run between processors, start it with \
             run.arithmetic = \"portable\"",
            then.trim()
        ));
    }
    Ok(())
}
