//! The sources of the kernels, as parts of the program.

/// A source under `cuda/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Name of the file.
    pub name: &'static str,
    /// Contents of the file.
    pub text: &'static str,
}

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        &[$(Source {
            name: $name,
            text: include_str!(concat!("../../cuda/", $name)),
        }),*]
    };
}

/// The files that sources include.
pub const HEADERS: &[Source] = sources![
    "attention.cuh",
    "device.cuh",
    "distribution.cuh",
    "mma.cuh",
    "sampling.cuh",
];

/// The files that declare kernels.
pub const SOURCES: &[Source] = sources![
    "activation.cu",
    "attention.cu",
    "attention_paged.cu",
    "attention_tensor.cu",
    "logits.cu",
    "norm.cu",
    "optimizer.cu",
    "rope.cu",
    "rows.cu",
    "sampling.cu",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_is_part_of_the_program() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");
        let files = std::fs::read_dir(folder).unwrap();
        let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let sources = HEADERS.iter().chain(SOURCES);
        let embedded: BTreeSet<String> = sources.map(|source| source.name.to_owned()).collect();
        assert_eq!(files.collect::<BTreeSet<_>>(), embedded);
    }
}
