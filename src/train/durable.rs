//! Files and folders that survive a crash: written beside, synced, then renamed into place.
//!
//! A rename is atomic, but a crash may keep the rename and lose the bytes, so every file is synced
//! before it, and the folder that holds the name after it. Names that start with [`TEMPORARY`] are
//! unfinished work of a process that died.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// How the names of unfinished files and folders start.
pub const TEMPORARY: &str = ".tmp-";

/// Adds to an I/O error what was done to which path; every error of these functions has it.
pub fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| {
        io::Error::new(
            error.kind(),
            format!("cannot {action} {}: {error}", path.display()),
        )
    }
}

/// Creates `path`, lets `write` fill it and syncs it. An error leaves the file unfinished.
pub fn write_synced<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<T>,
) -> io::Result<T> {
    let file = File::create(path).map_err(on("create", path))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let result = write(&mut writer).map_err(on("write", path))?;
    writer.flush().map_err(on("write", path))?;
    writer.get_ref().sync_all().map_err(on("sync", path))?;
    Ok(result)
}

/// Replaces the file `path` as a whole: readers see the old bytes or the new ones.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = temporary_beside(path)?;
    write_synced(&beside, |writer| writer.write_all(bytes))?;
    fs::rename(&beside, path).map_err(on("rename into place", path))?;
    sync_folder(parent(path))
}

/// Replaces the folder `path` as a whole: `fill` gets an empty folder beside it, whose files and
/// subfolders are then synced and renamed into place.
///
/// Between moving an old folder out of the way and the new one into place there is an instant with
/// neither; what the folder holds must be recomputable (from a checkpoint, say).
pub fn replace_folder<T, E>(path: &Path, fill: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E>
where
    E: From<io::Error>,
{
    let beside = temporary_beside(path)?;
    remove(&beside)?;
    fs::create_dir_all(&beside).map_err(on("create", &beside))?;
    let result = fill(&beside)?;
    sync_tree(&beside)?;
    rename_folder(&beside, path)?;
    Ok(result)
}

/// Renames a finished folder to `path`, removing the folder that was there.
pub fn rename_folder(finished: &Path, path: &Path) -> io::Result<()> {
    if path.exists() {
        let old = temporary_beside(&path.with_extension("old"))?;
        remove(&old)?;
        fs::rename(path, &old).map_err(on("move aside", path))?;
        fs::rename(finished, path).map_err(on("rename into place", path))?;
        remove(&old)?;
    } else {
        fs::rename(finished, path).map_err(on("rename into place", path))?;
    }
    sync_folder(parent(path))
}

/// Removes what processes that died have left in `folder`.
pub fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder).map_err(on("read", folder))? {
        let entry = entry.map_err(on("read", folder))?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Makes the names in `folder` durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(on("sync", folder))
}

/// Makes all files below `folder` durable, and their names.
fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder).map_err(on("read", folder))? {
        let path = entry.map_err(on("read", folder))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(on("sync", &path))?;
        }
    }
    sync_folder(folder)
}

/// Removes a file or a folder with all it holds; there may be nothing.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(on("remove", path)(error)),
        _ => Ok(()),
    }
}

/// `.tmp-NAME` in the folder of `path`.
fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} does not name a file", path.display()),
        )
    })?;
    Ok(path.with_file_name(format!("{TEMPORARY}{}", name.to_string_lossy())))
}

/// The folder that holds `path`; of a bare name, the current one.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_replaced_as_a_whole() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("final");
        let fill = |text: &'static str| {
            move |folder: &Path| -> io::Result<()> { fs::write(folder.join("a"), text) }
        };
        replace_folder(&target, fill("one")).unwrap();
        fs::write(target.join("stale"), "").unwrap();
        replace_folder(&target, fill("two")).unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "two");
        assert!(!target.join("stale").exists());
        assert_eq!(
            fs::read_dir(root.path()).unwrap().count(),
            1,
            "something was left beside"
        );
    }

    #[test]
    fn a_failed_fill_leaves_the_old_folder() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("final");
        replace_folder(&target, |folder| fs::write(folder.join("a"), "one")).unwrap();
        let failed = replace_folder(&target, |_| -> io::Result<()> {
            Err(io::Error::other("full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "one");
        remove_leftovers(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
