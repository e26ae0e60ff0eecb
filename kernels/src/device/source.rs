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
pub const HEADERS: &[Source] = sources!["device.cuh"];

/// The files that declare kernels.
pub const SOURCES: &[Source] = sources![
    "activation.cu",
    "logits.cu",
    "norm.cu",
    "optimizer.cu",
    "rope.cu",
    "rows.cu",
];

impl Source {
    /// The names of the kernels that the source declares with `KERNEL`.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> + use<> {
        let lines = self.text.lines();
        lines.filter_map(|line| line.trim().strip_prefix("KERNEL(")?.strip_suffix(')'))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::device::Kernel;

    #[test]
    fn every_kernel_is_declared_once() {
        let mut declared: Vec<&str> = SOURCES.iter().flat_map(Source::kernels).collect();
        let mut listed: Vec<&str> = Kernel::ALL.iter().map(|kernel| kernel.name).collect();
        declared.sort_unstable();
        listed.sort_unstable();
        assert_eq!(declared, listed);
    }

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
