//! `collimate config`: the reference of a key or table, on standard output.

use crate::cli::KeyArgs;
use crate::config::reference;
use crate::terminal;
use crate::train::signal::Outcome;

/// Prints what the reference says of `args.key`; without a key, the list of tables.
///
/// # Errors
/// A name that is neither key nor table, with the nearest one; or output that cannot be written.
pub fn config(args: &KeyArgs) -> anyhow::Result<Outcome> {
    let text = reference::explain(args.key.as_deref())?;
    let _ = terminal::product(text.trim_end())?;
    Ok(Outcome::Finished)
}
