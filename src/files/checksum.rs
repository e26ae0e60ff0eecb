//! Size and CRC-32 of a file, by which a changed or damaged file is recognised.

use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::regular;

/// Size and CRC-32 of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    /// Size in bytes.
    pub bytes: u64,
    /// CRC-32 (IEEE).
    pub crc32: u32,
}

/// Passes bytes on to `inner`, and sums them on their way.
pub struct Summed<W> {
    inner: W,
    bytes: u64,
    crc: crc32fast::Hasher,
}

impl<W: Write> Summed<W> {
    /// A writer to which no bytes were written.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            bytes: 0,
            crc: crc32fast::Hasher::new(),
        }
    }

    /// The sum of all that was written.
    pub fn finish(self) -> Checksum {
        Checksum {
            bytes: self.bytes,
            crc32: self.crc.finalize(),
        }
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.crc.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The sum of a file.
///
/// # Errors
/// If it cannot be read, or is not a regular file.
pub fn of_file(path: &Path) -> io::Result<Checksum> {
    let mut summed = Summed::new(io::sink());
    io::copy(&mut regular::open(path)?, &mut summed)?;
    Ok(summed.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_a_known_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "123456789").unwrap();
        // The check value of CRC-32/ISO-HDLC.
        let expected = Checksum {
            bytes: 9,
            crc32: 0xcbf4_3926,
        };
        assert_eq!(of_file(file.path()).unwrap(), expected);
    }
}
