//! Reading a safetensors file: its header first, then a tensor's values on request.
//!
//! The file is read, not mapped: one that is cut while it is read is then an error that names it,
//! where a page of a mapping that is no longer there ends the process. Values go from the file to
//! their place block by block, so that a tensor costs its own memory and no copy of it.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::Metadata;
use safetensors::{SafeTensorError, SafeTensors};

use super::regular;

/// Values that one thread reads and converts at a time.
const BLOCK: usize = 1 << 16;

/// The longest header that the format allows, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;

/// A safetensors file that is open, with its header.
#[derive(Debug)]
pub struct StoredTensors {
    file: File,
    header: Metadata,
    /// Offset of the values in the file, in bytes.
    start: usize,
}

/// Why a file could not be opened.
#[derive(Debug)]
pub enum Unreadable {
    /// An I/O error.
    Io(io::Error),
    /// The header does not describe the file.
    Format {
        /// Fault that the parser found.
        source: SafeTensorError,
        /// The file's beginning, the header included as far as it is there.
        head: Vec<u8>,
        /// Size of the file in bytes.
        bytes: u64,
    },
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl StoredTensors {
    /// Opens a file and checks its header against its size.
    ///
    /// # Errors
    /// If the file cannot be read, or is not what its header says.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        let mut file = regular::open(path)?;
        let bytes = file.metadata()?.len();
        let mut head = Vec::new();
        Read::by_ref(&mut file)
            .take(size_of::<u64>() as u64)
            .read_to_end(&mut head)?;
        let length = head
            .first_chunk()
            .map_or(0, |length| u64::from_le_bytes(*length));
        Read::by_ref(&mut file)
            .take(length.min(LONGEST_HEADER))
            .read_to_end(&mut head)?;
        match header(&head, bytes) {
            Ok(header) => Ok(Self {
                file,
                header,
                start: head.len(),
            }),
            Err(source) => Err(Unreadable::Format {
                source,
                head,
                bytes,
            }),
        }
    }

    /// Names, types, shapes and places of the tensors, and the notes beside them.
    pub fn header(&self) -> &Metadata {
        &self.header
    }

    /// The values that lie at `range` behind the header, each of `N` bytes, as `widen` reads them.
    ///
    /// # Errors
    /// If the file cannot be read, or has become shorter.
    pub fn values<const N: usize>(
        &self,
        range: Range<usize>,
        widen: impl Fn([u8; N]) -> f32 + Sync,
    ) -> io::Result<Vec<f32>> {
        let mut values = vec![0.0; range.len() / N];
        let blocks = values.par_chunks_mut(BLOCK).enumerate();
        blocks.try_for_each(|(number, block)| {
            let from = range.start + number * BLOCK * N;
            let bytes = self.bytes(from, block.len() * N)?;
            let (read, _) = bytes.as_chunks::<N>();
            block
                .iter_mut()
                .zip(read)
                .for_each(|(value, bytes)| *value = widen(*bytes));
            io::Result::Ok(())
        })?;
        Ok(values)
    }

    /// True if the bytes at `range` are those of `other` at `theirs`; read block by block.
    ///
    /// # Errors
    /// If a file cannot be read, or has become shorter.
    pub fn same_bytes(
        &self,
        range: Range<usize>,
        other: &Self,
        theirs: Range<usize>,
    ) -> io::Result<bool> {
        if range.len() != theirs.len() {
            return Ok(false);
        }
        for done in (0..range.len()).step_by(BLOCK) {
            let count = BLOCK.min(range.len() - done);
            if self.bytes(range.start + done, count)? != other.bytes(theirs.start + done, count)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// So many bytes from a place behind the header on.
    fn bytes(&self, from: usize, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let read = self
            .file
            .read_exact_at(&mut bytes, (self.start + from) as u64);
        read.map_err(cut)?;
        Ok(bytes)
    }
}

/// The header in `head`, whose file has so many `bytes`.
fn header(head: &[u8], bytes: u64) -> Result<Metadata, SafeTensorError> {
    match SafeTensors::read_metadata(head) {
        // The values, which are not read here, are all that is missing.
        Err(SafeTensorError::MetadataIncompleteBuffer) => {}
        Ok((_, header)) if bytes == head.len() as u64 => return Ok(header),
        Ok(_) => return Err(SafeTensorError::MetadataIncompleteBuffer),
        Err(error) => return Err(error),
    }
    let text = head.get(size_of::<u64>()..).unwrap_or_default();
    let header: Metadata =
        serde_json::from_slice(text).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    match header.data_len() as u64 == bytes - head.len() as u64 {
        true => Ok(header),
        false => Err(SafeTensorError::MetadataIncompleteBuffer),
    }
}

/// The file was as long as its header says when it was opened.
fn cut(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(
            error.kind(),
            "the file became shorter while it was read; is another program writing it?",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;

    fn written(values: &[f32]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![values.len()], &bytes).unwrap();
        std::fs::write(
            file.path(),
            safetensors::serialize([("a", view)], None).unwrap(),
        )
        .unwrap();
        file
    }

    #[test]
    fn values_of_several_blocks_come_in_order() {
        for count in [0, 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1] {
            let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
            let file = written(&values);
            let stored = StoredTensors::open(file.path()).unwrap();
            let (start, end) = stored.header().info("a").unwrap().data_offsets;
            assert!(stored.values(start..end, f32::from_le_bytes).unwrap() == values);
        }
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_read_is_an_error() {
        let file = written(&[1.0; 1000]);
        let stored = StoredTensors::open(file.path()).unwrap();
        let open = OpenOptions::new().write(true).open(file.path()).unwrap();
        open.set_len(1000).unwrap();
        let error = stored.values(0..4000, f32::from_le_bytes).unwrap_err();
        assert!(error.to_string().contains("became shorter"), "{error}");
    }

    #[test]
    fn a_file_of_another_size_than_its_header_says_is_refused() {
        let file = written(&[1.0; 10]);
        let open = OpenOptions::new().write(true).open(file.path()).unwrap();
        let whole = file.as_file().metadata().unwrap().len();
        for bytes in [whole - 1, whole + 1, 20, 7, 0] {
            open.set_len(bytes).unwrap();
            let error = StoredTensors::open(file.path()).unwrap_err();
            assert!(matches!(error, Unreadable::Format { bytes: found, .. } if found == bytes));
        }
    }
}
