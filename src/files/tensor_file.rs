//! Writing a safetensors file tensor by tensor: the header from what the tensors are, then their
//! values in the header's order.
//!
//! Only the values of one tensor need be in memory. Left out: reading, which is
//! [`super::stored`]'s.

use std::collections::BTreeMap;
use std::io::{self, Write};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

/// Values turned into bytes at a time.
const BLOCK: usize = 1 << 14;

/// A tensor's entry in the header.
pub struct Description {
    /// The tensor's name.
    pub name: String,
    /// The type that its values are stored in.
    pub dtype: Dtype,
    /// The tensor's shape as stored.
    pub shape: Vec<usize>,
}

/// Writes the header: JSON, padded with spaces so that the values after it are aligned to eight
/// bytes. `notes` are what readers look for beside tensors, such as the framework.
///
/// # Errors
/// If `out` refuses, or the sizes overflow.
pub fn write_header(
    out: &mut dyn Write,
    notes: Option<&BTreeMap<String, String>>,
    tensors: impl Iterator<Item = Description>,
) -> io::Result<()> {
    let mut end = 0;
    let info = |tensor: Description| {
        let start = end;
        end += tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8;
        let info = TensorInfo {
            dtype: tensor.dtype,
            shape: tensor.shape,
            data_offsets: (start, end),
        };
        (tensor.name, info)
    };
    let metadata = Metadata::new(None, tensors.map(info).collect()).map_err(io::Error::other)?;
    let mut text = serde_json::to_vec(&metadata)?;
    if let Some(notes) = notes {
        text = with_notes(text, notes)?;
    }
    text.resize(text.len().next_multiple_of(size_of::<u64>()), b' ');
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)
}

/// The crate would write notes in an order of chance; a file's bytes are to follow from its
/// contents.
fn with_notes(text: Vec<u8>, notes: &BTreeMap<String, String>) -> io::Result<Vec<u8>> {
    let mut noted = b"{\"__metadata__\":".to_vec();
    serde_json::to_writer(&mut noted, notes)?;
    if text != b"{}" {
        noted.push(b',');
    }
    noted.extend(&text[1..]);
    Ok(noted)
}

/// Writes a tensor's values, each as `encode` appends it to the bytes.
///
/// # Errors
/// If `out` refuses.
pub fn write_values(
    out: &mut dyn Write,
    values: &[f32],
    encode: impl Fn(f32, &mut Vec<u8>),
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(BLOCK * size_of::<f32>());
    for block in values.chunks(BLOCK) {
        bytes.clear();
        block.iter().for_each(|&value| encode(value, &mut bytes));
        out.write_all(&bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn notes_stand_in_the_header_in_one_order() {
        let notes = ["b", "a", "c"].map(|key| (key.to_owned(), key.to_uppercase()));
        let notes = BTreeMap::from(notes);
        for tensors in [0, 1] {
            let described = (0..tensors).map(|_| Description {
                name: "t".into(),
                dtype: Dtype::F32,
                shape: vec![0],
            });
            let mut file = Vec::new();
            write_header(&mut file, Some(&notes), described).unwrap();
            let (_, metadata) = SafeTensors::read_metadata(&file).unwrap();
            let read = metadata.metadata().clone().unwrap();
            assert_eq!(BTreeMap::from_iter(read), notes);
            let text = String::from_utf8_lossy(&file[8..]).into_owned();
            assert!(
                text.starts_with(r#"{"__metadata__":{"a":"A","b":"B","c":"C"}"#),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_written_is_a_safetensors_file() {
        let values: Vec<f32> = (0..BLOCK + 3).map(|i| i as f32).collect();
        let described = [("long", values.len()), ("a", 2)].map(|(name, size)| Description {
            name: name.into(),
            dtype: Dtype::F32,
            shape: vec![size],
        });
        let mut file = Vec::new();
        write_header(&mut file, None, described.into_iter()).unwrap();
        assert_eq!(file.len() % 8, 0);
        for tensor in [&values[..], &values[..2]] {
            write_values(&mut file, tensor, |v, bytes| bytes.extend(v.to_le_bytes())).unwrap();
        }
        let read = SafeTensors::deserialize(&file).unwrap();
        for (name, expected) in [("long", &values[..]), ("a", &values[..2])] {
            let (bytes, _) = read.tensor(name).unwrap().data().as_chunks();
            let found: Vec<f32> = bytes.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert_eq!(found, expected, "{name}");
        }
    }
}
