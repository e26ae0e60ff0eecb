//! A file that is either the old one or the whole new one, whatever happens in between.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::WeightsError;

/// Buffer between the writer and the file.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes `file` by `write` beside its place, syncs it, then renames it into place and syncs the folder.
/// If anything fails the old file stays and the new one is removed.
///
/// # Errors
/// What `write` returned, or an input/output error with the file's name.
pub(crate) fn replace_file(
    file: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), WeightsError>,
) -> Result<(), WeightsError> {
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = write_synced(&partial, write).and_then(|()| {
        fs::rename(&partial, file)
            .and_then(|()| sync_folder_of(file))
            .map_err(|source| cannot_write(file, source))
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// An input/output error met while writing `file`.
pub(crate) fn cannot_write(file: &Path, source: std::io::Error) -> WeightsError {
    WeightsError::Write {
        file: file.to_owned(),
        source,
    }
}

fn write_synced(
    file: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), WeightsError>,
) -> Result<(), WeightsError> {
    let created = File::create(file).map_err(|source| cannot_write(file, source))?;
    let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, created);
    write(&mut buffered)?;
    buffered
        .into_inner()
        .map_err(|error| error.into_error())
        .and_then(|file| file.sync_all())
        .map_err(|source| cannot_write(file, source))
}

/// Makes the rename itself survive a power failure; only Unix lets a folder be opened for it.
fn sync_folder_of(file: &Path) -> std::io::Result<()> {
    match file.parent() {
        Some(folder) if cfg!(unix) && !folder.as_os_str().is_empty() => {
            File::open(folder)?.sync_all()
        }
        _ => Ok(()),
    }
}
