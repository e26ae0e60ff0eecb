//! The sources of the kernels, as parts of the program.

use crate::device::kernel::Kernel;

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

impl Source {
    /// The kernels that the source declares.
    pub fn kernels(&self) -> impl Iterator<Item = Kernel> {
        let all = Kernel::ALL.iter().copied();
        all.filter(|kernel| self.declarations().any(|name| is_named(kernel.name, name)))
    }

    /// The names in the source's lines `KERNEL(name)`. Where `##` joins the name of a macro's
    /// parameter to it, each value of the parameter is a kernel.
    fn declarations(&self) -> impl Iterator<Item = &'static str> {
        let names = self
            .text
            .lines()
            .map(|line| line.trim_end_matches(['\\', ' ']));
        names.filter_map(|line| line.trim_start().strip_prefix("KERNEL(")?.strip_suffix(')'))
    }
}

/// Whether a declaration declares the kernel of this name.
fn is_named(kernel: &str, declaration: &str) -> bool {
    match declaration.split_once("##") {
        Some((stem, _)) => kernel
            .strip_prefix(stem)
            .is_some_and(|value| value.bytes().all(|digit| digit.is_ascii_digit())),
        None => kernel == declaration,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kernel_is_declared_once() {
        let names = |source: &Source| {
            source
                .kernels()
                .map(|kernel| kernel.name)
                .collect::<Vec<_>>()
        };
        let mut declared: Vec<&str> = SOURCES.iter().flat_map(names).collect();
        let mut listed: Vec<&str> = Kernel::ALL.iter().map(|kernel| kernel.name).collect();
        declared.sort_unstable();
        listed.sort_unstable();
        assert_eq!(declared, listed);
        for declaration in SOURCES.iter().flat_map(Source::declarations) {
            let mut kernels = listed.iter();
            assert!(
                kernels.any(|kernel| is_named(kernel, declaration)),
                "{declaration}"
            );
        }
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
