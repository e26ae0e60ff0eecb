//! Compiled images in a folder, so that only the first start of the program compiles.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes of the checksum before an image.
const CHECKSUM: usize = 8;

/// A folder of compiled images.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
}

impl Images {
    /// The images in a folder, which is created with the first of them.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// The image under this key, or else that of `compile`, which is stored. An image that cannot
    /// be read is compiled again; one that cannot be stored is compiled at each start.
    ///
    /// # Errors
    /// Errors of `compile`.
    pub fn get_or<E>(
        &self,
        name: &str,
        key: &impl Hash,
        compile: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let path = self.folder.join(format!("{name}-{:016x}.bin", hash(key)));
        if let Some(image) = read(&path) {
            return Ok(image);
        }
        let image = compile()?;
        let _ = self.write(&path, &image);
        Ok(image)
    }

    /// Writes an image under a temporary name and renames it, since programs may start together.
    fn write(&self, path: &Path, image: &[u8]) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(&hash(&image).to_le_bytes())?;
        file.write_all(image)?;
        file.persist(path)?;
        Ok(())
    }
}

/// The image in a file, unless there is none or its checksum differs.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let (checksum, image) = bytes.split_first_chunk::<CHECKSUM>()?;
    if u64::from_le_bytes(*checksum) != hash(&image) {
        return None;
    }
    bytes.drain(..CHECKSUM);
    Some(bytes)
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Compiled = Result<Vec<u8>, &'static str>;

    const NEVER: fn() -> Compiled = || Err("compiled");

    #[test]
    fn an_image_is_compiled_once_for_each_key() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(&folder.path().join("a/b"));
        assert_eq!(images.get_or("norm", &1, NEVER), Err("compiled"));
        let stored: Compiled = images.get_or("norm", &1, || Ok(vec![1, 2, 3]));
        assert_eq!(stored, Ok(vec![1, 2, 3]));
        assert_eq!(images.get_or("norm", &1, NEVER), Ok(vec![1, 2, 3]));
        assert_eq!(images.get_or("norm", &2, NEVER), Err("compiled"));
    }

    #[test]
    fn a_damaged_image_is_compiled_again() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path());
        let image = || -> Compiled { Ok((0..100).collect()) };
        images.get_or("norm", &1, image).unwrap();
        let files = || fs::read_dir(folder.path()).unwrap();
        let path = files().next().unwrap().unwrap().path();
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        changed[50] ^= 1;
        for damaged in [&changed, &whole[..60], &whole[..3], &[]] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(images.get_or("norm", &1, NEVER), Err("compiled"));
        }
        images.get_or("norm", &1, image).unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(files().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let images = Images::new(file.path());
        let compiled: Compiled = images.get_or("norm", &1, || Ok(vec![1]));
        assert_eq!(compiled, Ok(vec![1]));
    }
}
