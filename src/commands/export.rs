//! `collimate export`: a model with an adapter merged into it, as a Hugging Face folder of its own.

use std::path::Path;

use anyhow::ensure;

use super::inputs::ModelFolder;
use crate::cli::ExportArgs;
use crate::model::config::Head;
use crate::ops::backend::Backend;
use crate::stages::padding::choose_padding;
use crate::terminal;
use crate::train::signal::Outcome;

/// Merges the adapter in `args.adapter` into the model in `args.model`, and writes the whole to
/// `args.out` with the tokenizer.
///
/// # Errors
/// A folder that cannot be read, an adapter of another model, an output folder that has files, or a
/// file that cannot be written.
pub fn export(args: &ExportArgs) -> anyhow::Result<Outcome> {
    for input in [&args.model, &args.adapter] {
        ensure!(
            !is_same(input, &args.out),
            "--out is {}, which is read from; name another folder",
            args.out.display()
        );
    }
    ensure!(
        is_empty(&args.out),
        "--out is {}, which is not an empty folder: files of another model could stay beside the \
         new ones; name another folder, or remove this one",
        args.out.display()
    );
    let folder = ModelFolder::open(&args.model, Some(&args.adapter))?;
    let mut decoder = folder.decoder(folder.config().decoder.head, &Backend::CPU)?;
    let tokenizer = match folder.into_tokenizer() {
        Some(tokenizer) if decoder.decoder_config().head == Head::Score => {
            Some(choose_padding(decoder.config_mut(), tokenizer)?)
        }
        tokenizer => tokenizer,
    };
    decoder.save(&args.out, args.dtype)?;
    if let Some(tokenizer) = &tokenizer {
        tokenizer.save(&args.out)?;
    }
    terminal::print(args.out.display());
    Ok(Outcome::Finished)
}

/// True if `folder` does not exist or has no entries.
fn is_empty(folder: &Path) -> bool {
    match folder.read_dir() {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => !folder.exists(),
    }
}

fn is_same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}
