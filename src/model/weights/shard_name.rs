//! Names of shards in an index. They come from the author of the model and become part of
//! addresses, and of paths that are read and written.

/// Largest number of bytes of a name; file systems allow 255.
const LONGEST: usize = 200;
const SUFFIX: &str = ".safetensors";

/// Checks that a shard's name is a plain file name such as `model-00001-of-00002.safetensors`. It
/// cannot leave its folder or repository, end an address early (`?`, `#`) or hide such characters
/// (`%2e`).
///
/// # Errors
/// The reason why the name is invalid; messages put the name and a colon before it.
pub fn check(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.len() > LONGEST {
        return Err(format!("it has {} bytes, more than {LONGEST}", name.len()));
    }
    if let Some(c) = name.chars().find(|&c| !is_plain(c)) {
        return Err(format!(
            "it has {c:?}; letters, digits, -, _ and . are allowed"
        ));
    }
    match name.strip_suffix(SUFFIX) {
        Some(stem) if !stem.is_empty() && !stem.starts_with('.') => Ok(()),
        _ => Err(format!("it does not end in {SUFFIX}")),
    }
}

/// A name in quotes for messages; only the beginning of a long one.
pub fn shown(name: &str) -> String {
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &name[..end]),
        None => format!("{name:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_alone_are_read() {
        for name in [
            "model-00001-of-00002.safetensors",
            "model.safetensors",
            "pytorch_model-1.fp16.safetensors",
        ] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        let long = "x".repeat(300) + ".safetensors";
        for name in [
            "",
            ".",
            "..",
            ".safetensors",
            "...safetensors",
            "../model.safetensors",
            "/etc/model.safetensors",
            "a/b.safetensors",
            "a\\b.safetensors",
            "C:b.safetensors",
            "a?download=true&b.safetensors",
            "a.safetensors?x",
            "a#b.safetensors",
            "%2e%2e%2fa.safetensors",
            "a%00.safetensors",
            "a\0.safetensors",
            "a\nb.safetensors",
            "a b.safetensors",
            "é.safetensors",
            "model.bin",
            &long,
        ] {
            assert!(check(name).is_err(), "{name:?}");
        }
    }
}
