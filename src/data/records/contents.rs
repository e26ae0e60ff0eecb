//! A data file's bytes and its kind. Compression and Parquet are recognised by the first bytes,
//! other kinds by the extension.
//!
//! gzip and zstd are unpacked in memory, all members of an archive one after the other. An archive
//! that expands far more than text does is refused before it fills the memory.

use std::cell::Cell;
use std::io::{Cursor, ErrorKind, Read};
use std::path::Path;

use crate::data::error::{DataError, Result};
use crate::files::regular;

/// Unpacked bytes up to which any ratio is accepted.
const ANY_RATIO: usize = 64 << 20;

/// Largest ratio of unpacked to packed bytes beyond that. Ordinary text stays below 50.
const MOST_RATIO: usize = 100;

/// Layout of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Json,
    Table { delimiter: u8 },
    Text,
    Parquet,
}

/// A file's kind and its unpacked bytes. A Parquet file is not read here.
pub(super) struct FileContents {
    pub kind: FileKind,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }

    fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Some(Compression::Zstd)
            }
            _ => None,
        }
    }
}

/// Opens the file, and reads it unless it is Parquet.
pub(super) fn read(path: &Path) -> Result<FileContents> {
    let mut file = regular::open(path).map_err(|e| DataError::io(path, e))?;
    let mut head = Vec::new();
    let first = file.by_ref().take(8).read_to_end(&mut head);
    first.map_err(|e| DataError::io(path, e))?;
    refuse_others(path, &head)?;
    // A pipe cannot go back to its start.
    let mut whole = Cursor::new(head.clone()).chain(file);
    if is_parquet(&head) {
        let bytes = Vec::new();
        return Ok(FileContents {
            kind: FileKind::Parquet,
            bytes,
        });
    }
    let kind = kind_by_name(path)?;
    let Some(compression) = Compression::of(&head) else {
        let mut bytes = Vec::new();
        let read = whole.read_to_end(&mut bytes);
        read.map_err(|e| DataError::io(path, e))?;
        return Ok(FileContents { kind, bytes });
    };
    let bytes = unpack(path, compression, whole)?;
    if kind == FileKind::Parquet || is_parquet(&bytes) {
        let message = format!(
            "is Parquet inside a {} archive; unpack it first (Parquet compresses its own columns)",
            compression.name()
        );
        return Err(unreadable(path, message));
    }
    Ok(FileContents { kind, bytes })
}

fn is_parquet(head: &[u8]) -> bool {
    head.starts_with(b"PAR1")
}

/// Formats that are recognised but not supported.
fn refuse_others(path: &Path, head: &[u8]) -> Result<()> {
    let message = match head {
        [b'P', b'K', 3, 4, ..] => "is a zip archive or a spreadsheet; unpack it, or save it as CSV",
        [b'B', b'Z', b'h', ..] => "is a bzip2 archive; unpack it, or pack it with gzip or zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            "is an xz archive; unpack it, or pack it with gzip or zstd"
        }
        [0x04, 0x22, 0x4d, 0x18, ..] => "is an lz4 archive; unpack it, or pack it with zstd",
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => {
            "is an Arrow file; write it as Parquet or JSON Lines"
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "is UTF-16; convert it to UTF-8",
        _ => return Ok(()),
    };
    Err(unreadable(path, message))
}

/// True if the file's extension is that of a table (CSV or TSV).
pub(super) fn is_table(path: &Path) -> bool {
    matches!(kind_by_name(path), Ok(FileKind::Table { .. }))
}

fn kind_by_name(path: &Path) -> Result<FileKind> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_ascii_lowercase();
    let packed = [".gz", ".gzip", ".zst", ".zstd"];
    let stem = packed.iter().find_map(|end| name.strip_suffix(end));
    match stem.unwrap_or(&name).rsplit_once('.').map(|(_, end)| end) {
        Some("jsonl" | "ndjson" | "json") => Ok(FileKind::Json),
        Some("csv") => Ok(FileKind::Table { delimiter: b',' }),
        Some("tsv") => Ok(FileKind::Table { delimiter: b'\t' }),
        Some("txt") => Ok(FileKind::Text),
        Some("parquet") => Ok(FileKind::Parquet),
        _ => Err(DataError::UnknownKind {
            path: path.to_owned(),
        }),
    }
}

/// Counts the bytes that are read.
struct CountedReader<'c, R> {
    inner: R,
    count: &'c Cell<usize>,
}

impl<R: Read> Read for CountedReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.set(self.count.get() + read);
        Ok(read)
    }
}

fn unpack(path: &Path, compression: Compression, packed: impl Read) -> Result<Vec<u8>> {
    let damaged = |error: std::io::Error| {
        let message = format!(
            "the {} archive is cut short or damaged ({error}); fetch or pack it again",
            compression.name()
        );
        unreadable(path, message)
    };
    let count = Cell::new(0);
    let counted = CountedReader {
        inner: packed,
        count: &count,
    };
    let mut reader: Box<dyn Read + '_> = match compression {
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(counted)),
        Compression::Zstd => Box::new(zstd::Decoder::new(counted).map_err(damaged)?),
    };
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(read) => bytes.extend_from_slice(&chunk[..read]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(damaged(e)),
        }
        if bytes.len() > ANY_RATIO && bytes.len() / MOST_RATIO > count.get() {
            let message = format!(
                "expands to more than {MOST_RATIO} times its size ({} MiB so far), as an archive \
                 made to fill a memory does; unpack it yourself if that is right",
                bytes.len() >> 20
            );
            return Err(unreadable(path, message));
        }
    }
}

pub(super) fn unreadable(path: &Path, message: impl Into<String>) -> DataError {
    DataError::Unreadable {
        path: path.to_owned(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[track_caller]
    fn refused(name: &str, bytes: &[u8], says: &[&str]) {
        let (_folder, path) = file(name, bytes);
        let error = read(&path).err().expect("an error").to_string();
        for part in says.iter().chain([&name]) {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }

    #[test]
    fn archives_are_told_by_their_bytes_and_read_to_their_last_member() {
        let two = [gzip(b"{\"a\": 1}\n"), gzip(b"{\"a\": 2}\n")].concat();
        let frames = [zstd(b"{\"a\": 1}\n"), zstd(b"{\"a\": 2}\n")].concat();
        let plain = b"{\"a\": 1}\n{\"a\": 2}\n".to_vec();
        for (name, bytes) in [
            ("d.jsonl.gz", &two),
            ("d.jsonl", &two),
            ("d.json.zst", &frames),
            ("d.jsonl.gz", &frames),
            ("d.jsonl.gz", &plain),
        ] {
            let (_folder, path) = file(name, bytes);
            let contents = read(&path).unwrap();
            assert_eq!(contents.bytes, plain, "{name}");
            assert_eq!(contents.kind, FileKind::Json, "{name}");
        }
        let (_folder, path) = file("d.CSV.GZ", &gzip(b"a\n1\n"));
        assert_eq!(
            read(&path).unwrap().kind,
            FileKind::Table { delimiter: b',' }
        );
    }

    #[test]
    fn archives_that_are_cut_or_spoilt_are_named() {
        let text: Vec<u8> = (0..4000u32)
            .flat_map(|i| i.to_string().into_bytes())
            .collect();
        for (name, whole) in [("d.jsonl.gz", gzip(&text)), ("d.jsonl.zst", zstd(&text))] {
            refused(name, &whole[..whole.len() / 2], &["cut short or damaged"]);
            refused(name, &whole[..whole.len() - 3], &["cut short or damaged"]);
        }
        let mut spoilt = gzip(&text);
        let end = spoilt.len() - 6;
        spoilt[end] ^= 1; // its checksum
        refused("d.jsonl.gz", &spoilt, &["cut short or damaged"]);
    }

    #[test]
    fn an_archive_that_would_fill_the_memory_is_refused() {
        let nothing = vec![b' '; ANY_RATIO + (1 << 20)];
        for bytes in [gzip(&nothing), zstd(&nothing)] {
            refused("d.jsonl.gz", &bytes, &["more than 100 times its size"]);
        }
    }

    #[test]
    fn formats_that_are_not_read_are_named() {
        refused(
            "d.csv",
            b"PK\x03\x04....",
            &["zip archive or a spreadsheet"],
        );
        refused("d.jsonl", b"BZh91AY&SY", &["bzip2"]);
        refused("d.csv", b"\xff\xfea\0b\0", &["UTF-16"]);
        refused(
            "d.parquet.gz",
            &gzip(b"PAR1...."),
            &["Parquet inside a gzip archive"],
        );
        refused(
            "d.xlsx",
            b"anything",
            &["unknown kind", ".jsonl", ".csv", ".gz"],
        );
    }
}
