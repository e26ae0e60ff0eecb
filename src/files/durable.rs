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

/// How the temporary name of a folder that is being replaced ends.
const REPLACED: &str = ".old";

/// Buffer between a writer and its file.
const BUFFER_BYTES: usize = 1 << 20;

/// Adds the action and the path to an I/O error, as in every error of these functions.
pub fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| {
        io::Error::new(
            error.kind(),
            format!("cannot {action} {}: {error}", path.display()),
        )
    }
}

/// Creates `path`, lets `write` fill it and syncs it. An error leaves the file unfinished.
///
/// # Errors
/// The error of `write`, and errors of the file system.
pub fn write_synced<T, E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<T, E>,
) -> Result<T, E> {
    let file = File::create(path).map_err(on("create", path))?;
    let writer = BufWriter::with_capacity(BUFFER_BYTES, file);
    let mut file = NewFile { path, writer };
    let result = write(&mut file)?;
    file.flush()?;
    let synced = file.writer.get_ref().sync_all();
    synced.map_err(on("sync", path))?;
    Ok(result)
}

/// A file whose errors name it.
struct NewFile<'a> {
    path: &'a Path,
    writer: BufWriter<File>,
}

impl Write for NewFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes).map_err(on("write", self.path))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush().map_err(on("write", self.path))
    }
}

/// Replaces the file `path` as a whole by what `write` writes: readers see the old bytes or the new
/// ones. If anything fails the old ones stay, and nothing is left beside them.
///
/// # Errors
/// As [`write_synced`].
pub fn replace_file<T, E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<T, E>,
) -> Result<T, E> {
    let beside = temporary_beside(path)?;
    let written = write_synced(&beside, write).and_then(|result| {
        fs::rename(&beside, path).map_err(on("rename into place", path))?;
        sync_folder(parent(path))?;
        Ok(result)
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Replaces the file `path` as a whole by `bytes`.
///
/// # Errors
/// If the file system refuses.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_file(path, |file| file.write_all(bytes))
}

/// Replaces the folder `path` as a whole: `fill` gets an empty folder beside it, whose files and
/// subfolders are then synced and renamed into place.
///
/// Between moving an old folder out of the way and the new one into place there is an instant with
/// neither; [`remove_leftovers`] puts the old one back if the process died then.
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
    let mut old = temporary_beside(path)?.into_os_string();
    old.push(REPLACED);
    let old = PathBuf::from(old);
    if path.exists() {
        remove(&old)?;
        fs::rename(path, &old).map_err(on("move aside", path))?;
    }
    fs::rename(finished, path).map_err(on("rename into place", path))?;
    // Before the old one goes, so that a crash leaves one of the two.
    sync_folder(parent(path))?;
    remove(&old)
}

/// Clears up what processes that died have left in `folder`: a folder that was moved aside goes
/// back where its successor did not come; all else is removed.
pub fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder).map_err(on("read", folder))? {
        let entry = entry.map_err(on("read", folder))?;
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix(TEMPORARY)) else {
            continue;
        };
        match name.strip_suffix(REPLACED).map(|name| folder.join(name)) {
            Some(place) if !place.exists() => {
                fs::rename(entry.path(), &place).map_err(on("put back", &place))?;
            }
            _ => remove(&entry.path())?,
        }
    }
    Ok(())
}

/// Makes the names in `folder` durable; only Unix lets a folder be opened for it.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
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

/// Renames `NAME` to the first free of `NAME.WHY-1`, `NAME.WHY-2`, … beside it, and returns where
/// it now lies.
///
/// # Errors
/// If the file system refuses.
pub fn set_aside(path: &Path, why: &str) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut number = 1;
    let free = loop {
        let candidate = path.with_file_name(format!("{name}.{why}-{number}"));
        if !candidate.exists() {
            break candidate;
        }
        number += 1;
    };
    fs::rename(path, &free).map_err(on("set aside", path))?;
    Ok(free)
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
    fn a_folder_whose_successor_did_not_come_is_put_back() {
        let root = tempfile::tempdir().unwrap();
        let (target, old) = (
            root.path().join("final"),
            root.path().join(".tmp-final.old"),
        );
        for died_between in [true, false] {
            for folder in [&old, &root.path().join(".tmp-final")] {
                fs::create_dir(folder).unwrap();
                fs::write(folder.join("a"), "one").unwrap();
            }
            assert_eq!(target.exists(), !died_between);
            remove_leftovers(root.path()).unwrap();
            assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "one");
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_alone() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("config.toml");
        write_atomic(&target, b"one").unwrap();
        let failed = replace_file(&target, |file| {
            file.write_all(b"tw")?;
            Err::<(), _>(io::Error::other("full"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "full");
        assert_eq!(fs::read_to_string(&target).unwrap(), "one");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let full = Path::new("/dev/full");
        let failed = write_synced(full, |file| file.write_all(b"one"));
        let message = failed.unwrap_err().to_string();
        assert!(message.starts_with("cannot write /dev/full: "), "{message}");
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
