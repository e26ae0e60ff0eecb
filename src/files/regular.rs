//! Reading files that must be regular ones: a named pipe without a writer never opens, and a device
//! such as `/dev/zero` never ends.
//!
//! A pipe that is open already (`/dev/stdin`, a shell's `<(command)`) has a writer, and is read.

use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read};
use std::path::Path;

/// Opens a file for reading.
///
/// # Errors
/// If there is none, it cannot be opened, or it is a folder, a device or a named pipe; the error
/// says which.
pub fn open(path: &Path) -> io::Result<File> {
    let found = fs::metadata(path)?;
    if !found.is_file() && !is_open_pipe(path, &found) {
        return Err(refusal(found.file_type()));
    }
    File::open(path)
}

/// All bytes of a file.
///
/// # Errors
/// The errors of [`open`], and if it cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let mut bytes = Vec::with_capacity(file.metadata().map_or(0, |file| file.len() as usize));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file as text.
///
/// # Errors
/// The errors of [`read`], and if it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let not_text = |_| io::Error::new(io::ErrorKind::InvalidData, "this is not UTF-8 text");
    String::from_utf8(read(path)?).map_err(not_text)
}

/// Error of something that is not a regular file.
pub fn refusal(kind: FileType) -> io::Error {
    use std::os::unix::fs::FileTypeExt;
    let found = match kind {
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_symlink() => "a link",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "no file",
    };
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("this is {found}, and must be a regular file"),
    )
}

/// True if a pipe has no name in the file system, so that somebody holds its other end.
fn is_open_pipe(path: &Path, found: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    found.file_type().is_fifo() && fs::canonicalize(path).is_err()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_regular_file_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "123").unwrap();
        assert_eq!(read(file.path()).unwrap(), b"123");
    }

    #[test]
    #[expect(unsafe_code, reason = "mkfifo is a call of the C library")]
    fn what_never_opens_or_never_ends_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
        // SAFETY: the name is a string that ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        for (path, word) in [
            (pipe.as_path(), "a named pipe"),
            (folder.path(), "a folder"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_pipe_that_is_open_is_read() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"123").unwrap();
        drop(writer);
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        assert_eq!(read(Path::new(&path)).unwrap(), b"123");
    }
}
