//! Output file of a command: JSON Lines that appear whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use serde::Serialize;
use tempfile::NamedTempFile;

/// A writer of JSON Lines. If it is dropped before [`JsonLines::finish`], an existing file stays.
pub(super) struct JsonLines {
    writer: BufWriter<OutputFile>,
    path: PathBuf,
}

enum OutputFile {
    /// A temporary file in the same folder, renamed at the end.
    File(NamedTempFile),
    /// A pipe or a terminal (`/dev/stdout`), which must not be replaced.
    Stream(File),
}

impl JsonLines {
    /// Creates a temporary file beside `path`, so that an unwritable folder fails at once.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let failed = || {
            format!(
                "cannot write {}; --out must name a file in an existing folder",
                path.display()
            )
        };
        // A link stays one: the file that it names is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let destination = OutputFile::open(&path).with_context(failed)?;
        Ok(Self {
            writer: BufWriter::new(destination),
            path,
        })
    }

    /// Writes a line. Reading its numbers as `f32` gives the same bits.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn write(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.writer, line)
            .map_err(io::Error::from)
            .and_then(|()| self.writer.write_all(b"\n"))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Renames the file to its path.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn finish(self) -> anyhow::Result<()> {
        let Self { writer, path } = self;
        let destination = writer.into_inner().map_err(|e| anyhow!(e.into_error()));
        let place = |destination: OutputFile| Ok(destination.place(&path)?);
        destination
            .and_then(place)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl OutputFile {
    fn open(path: &Path) -> io::Result<Self> {
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            return Ok(Self::Stream(File::options().write(true).open(path)?));
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let beside = tempfile::Builder::new()
            .prefix(".tmp-")
            // The permissions of any new file; temporary files are private by default.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)?;
        Ok(Self::File(beside))
    }

    fn place(self, path: &Path) -> io::Result<()> {
        match self {
            Self::File(beside) => {
                beside.as_file().sync_all()?;
                beside.persist(path)?;
            }
            Self::Stream(mut stream) => stream.flush()?,
        }
        Ok(())
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Stream(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Stream(stream) => stream.flush(),
        }
    }
}
