//! Rules of the source that neither the compiler nor rustfmt holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest line of a source file, in characters; rustfmt leaves comments and strings alone.
const LONGEST_LINE: usize = 100;

/// All Rust files under `folder`, each with its text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    for entry in fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display())) {
        let path = entry.expect("a readable folder entry").path();
        let relative = format!("{folder}/{}", path.file_name().unwrap().to_string_lossy());
        match path.extension() {
            _ if path.is_dir() => files.extend(sources(&relative)),
            Some(extension) if extension == "rs" => {
                files.push((relative.into(), fs::read_to_string(&path).expect("UTF-8")));
            }
            _ => {}
        }
    }
    files
}

#[test]
fn no_line_is_longer_than_a_hundred_characters() {
    let mut long = Vec::new();
    for (file, text) in ["src", "rollout", "kernels", "tests", "benches"]
        .into_iter()
        .flat_map(sources)
    {
        for (number, line) in text.lines().enumerate() {
            let length = line.chars().count();
            if length > LONGEST_LINE {
                long.push(format!(
                    "{}:{}: {length} characters",
                    file.display(),
                    number + 1
                ));
            }
        }
    }
    assert!(
        long.is_empty(),
        "{} lines are too long:\n{}",
        long.len(),
        long.join("\n")
    );
}

/// The type that a line defines. An indented alias is an associated type, whose name is its
/// trait's.
fn defined_type(line: &str) -> Option<&str> {
    let outermost = !line.starts_with(' ');
    let line = line.trim_start();
    let line = ["pub(crate) ", "pub(super) ", "pub "]
        .iter()
        .find_map(|visibility| line.strip_prefix(visibility))
        .unwrap_or(line);
    let name = ["struct ", "enum ", "trait ", "union ", "type "]
        .iter()
        .filter(|keyword| outermost || **keyword != "type ")
        .find_map(|keyword| line.strip_prefix(keyword))?;
    let name = name
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()?;
    // A key `type` in the text of a configuration defines nothing.
    name.starts_with(char::is_uppercase).then_some(name)
}

/// No two types of the engine and its crates have the same name, apart from the aliases of `Result`
/// that go with an error type.
#[test]
fn every_type_has_a_name_of_its_own() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, text) in ["src", "rollout/src", "kernels/src/host"]
        .into_iter()
        .flat_map(sources)
    {
        let names = text.lines().filter_map(defined_type);
        for name in names.filter(|name| *name != "Result") {
            let place = file.display().to_string();
            places.entry(name.to_owned()).or_default().push(place);
        }
    }
    assert!(
        places.len() > 500,
        "the search found {} types alone",
        places.len()
    );
    let shared: Vec<String> = places
        .iter()
        .filter(|(_, files)| files.len() > 1)
        .map(|(name, files)| format!("{name}: {}", files.join(", ")))
        .collect();
    assert!(
        shared.is_empty(),
        "types that share a name:\n{}",
        shared.join("\n")
    );
}
