//! The layering test: each module of `src/` imports only from the layers beneath it.
//!
//! The order is the one that ARCHITECTURE.md lists. A file's layer is the first part of its path
//! under `src/`; its imports are every `crate::NAME` in it, in a `use` (grouped ones too) or
//! inline, in test code as well. `lib.rs` and `main.rs` put the layers together and are exempt.
//! The crates beneath them all, `kernels/` and `rollout/` on top of it, import neither candle nor
//! the engine.
//!
//! Not checked: paths that leave a module by `super::super`, and comments, which may name any
//! layer.

use std::fs;
use std::path::{Path, PathBuf};

/// The layers from the ground up. Layers on one line may import each other.
const LAYERS: &[&[&str]] = &[
    &["rlhf"],
    &["random"],
    &["terminal"],
    &["files"],
    &["config"],
    &["data"],
    &["ops"],
    &["model"],
    &["reward"],
    &["roles"],
    &["train"],
    &["stages"],
    &["cli", "commands"],
];

/// The layer that is pure mathematics: it imports candle and nothing of the engine.
const PURE: &str = "rlhf";

/// Position of a layer, counted from the bottom; `None` for a name that is no layer.
fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|level| level.contains(&layer))
}

/// The source without its comments, line for line. A `//` after a colon belongs to a URL in a
/// string.
fn without_comments(source: &str) -> String {
    let code = |line: &str| -> String {
        let comment = line
            .match_indices("//")
            .find(|(at, _)| !line[..*at].ends_with(':'));
        comment.map_or(line, |(at, _)| &line[..at]).to_owned()
    };
    source.lines().map(code).collect::<Vec<_>>().join("\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The identifier at the start of `text`, or else its first character (the `*` of a glob).
fn head(text: &str) -> &str {
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    let first = text.chars().next().map_or(0, char::len_utf8);
    &text[..end.max(first)]
}

/// The first identifier of each item of a `{...}` group; `a` and `d` for `{a::{b, c}, d}`.
fn group_heads(group: &str) -> Vec<&str> {
    let (mut heads, mut depth, mut at_item) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => break,
            '}' => depth -= 1,
            ',' if depth == 1 => at_item = true,
            c if c.is_whitespace() || !at_item => {}
            _ => {
                heads.push(head(&group[at..]));
                at_item = false;
            }
        }
    }
    heads
}

/// Line number and remaining text after each place where a path begins with `root` (`crate::`).
fn paths_from<'a>(code: &'a str, root: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    code.match_indices(root)
        .filter(|(at, _)| !code[..*at].ends_with(|c| is_word(c) || c == ':' || c == '$'))
        .map(move |(at, _)| {
            (
                code[..at].matches('\n').count() + 1,
                &code[at + root.len()..],
            )
        })
}

/// Line number and name of each import from the crate's root.
fn imports(code: &str) -> Vec<(usize, &str)> {
    paths_from(code, "crate::")
        .flat_map(|(line, rest)| {
            let heads = if rest.starts_with('{') {
                group_heads(rest)
            } else {
                vec![head(rest)]
            };
            heads.into_iter().map(move |name| (line, name))
        })
        .filter(|(_, name)| *name != "self")
        .collect()
}

/// The reason why `layer` must not import `name`, and what to do; `None` if it may.
fn objection(layer: &str, name: &str) -> Option<String> {
    let here = rank(layer)?;
    if name == layer {
        return None;
    }
    match rank(name) {
        None => Some(format!(
            "`crate::{name}` is not a layer: name the layer that defines it, for a re-export at \
             the crate root hides where it stands; a new layer belongs in LAYERS in \
             tests/layering.rs and in ARCHITECTURE.md"
        )),
        Some(_) if layer == PURE => Some(format!(
            "`{PURE}` is mathematics on tensors and imports nothing of ours: \
             take what you need from `{name}` as an argument"
        )),
        Some(there) if there > here => Some(format!(
            "`{layer}` stands beneath `{name}`: move the shared part down into `{layer}` or \
             lower, or let `{name}` pass it in (a value, or a trait that `{layer}` defines)"
        )),
        Some(_) => None,
    }
}

/// Every import of one file of `src/` that breaks the order. `path` is relative to `src/` and uses
/// `/` as the separator.
fn violations(path: &str, source: &str) -> Vec<String> {
    if path == "lib.rs" || path == "main.rs" {
        return Vec::new();
    }
    let layer = path
        .split('/')
        .next()
        .unwrap_or(path)
        .trim_end_matches(".rs");
    if rank(layer).is_none() {
        return vec![format!(
            "src/{path}: `{layer}` is not a layer: move the file into one, or give it a place in \
             LAYERS in tests/layering.rs and in ARCHITECTURE.md"
        )];
    }
    let code = without_comments(source);
    let upward = imports(&code).into_iter().filter_map(|(line, name)| {
        objection(layer, name).map(|why| format!("src/{path}:{line}: {why}"))
    });
    let crates = [("rollout", "rollout::"), ("kernels", "kernels::")].into_iter();
    let paths = crates.flat_map(|(name, root)| {
        let lines = paths_from(&code, root).map(|(line, _)| line);
        lines.map(move |line| (line, name))
    });
    let beneath = paths.filter(|_| layer == PURE).map(|(line, name)| {
        format!("src/{path}:{line}: `{PURE}` imports nothing of ours, the crate `{name}` included")
    });
    upward.chain(beneath).collect()
}

/// A crate beneath the engine.
struct Beneath {
    folder: &'static str,
    /// Crates that it must not name, besides candle and the engine.
    above: &'static [&'static str],
    advice: &'static str,
}

const ROLLOUT: Beneath = Beneath {
    folder: "rollout",
    above: &[],
    advice: "the generator knows tokens, blocks and logits; ask the model for what you need \
             through its trait",
};

const KERNELS: Beneath = Beneath {
    folder: "kernels",
    above: &["rollout", "collimate-rollout"],
    advice: "the kernels know slices and a device's arrays; take what you need as an argument",
};

/// Every mention of candle, of the engine or of a crate above in a file of a crate beneath the
/// engine, comments apart.
fn outward(krate: &Beneath, path: &str, source: &str) -> Vec<String> {
    // In a manifest `-` separates the parts of a name and `#` begins a comment.
    let manifest = path.ends_with(".toml");
    let code = if manifest {
        source.replace('#', "//")
    } else {
        source.to_owned()
    };
    let part_of_name = |c: char| is_word(c) || (manifest && c == '-');
    let forbidden = |word: &str| {
        word.starts_with("candle") || word == "collimate" || krate.above.contains(&word)
    };
    let mentions = |(at, line): (usize, &str)| {
        let word = line
            .split(|c| !part_of_name(c))
            .find(|word| forbidden(word))?;
        Some(format!(
            "{}/{path}:{}: names `{word}`: {}",
            krate.folder,
            at + 1,
            krate.advice
        ))
    };
    without_comments(&code)
        .lines()
        .enumerate()
        .filter_map(mentions)
        .collect()
}

/// All files under `folder` with the given extension.
fn files_under(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.expect("a readable folder entry").path()) {
        if path.is_dir() {
            files.extend(files_under(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Runs `check` on each file (its path relative to `root`, its text) and fails with all violations.
fn assert_clean(root: &Path, files: &[PathBuf], check: impl Fn(&str, &str) -> Vec<String>) {
    assert!(
        !files.is_empty(),
        "no source files under {}",
        root.display()
    );
    let found: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let relative = file.strip_prefix(root).expect("a file under its root");
            let relative = relative.to_string_lossy().replace('\\', "/");
            check(
                &relative,
                &fs::read_to_string(file).expect("a readable source file"),
            )
        })
        .collect();
    assert!(
        found.is_empty(),
        "the layers are out of order:\n{}",
        found.join("\n")
    );
}

#[test]
fn the_engine_imports_downward() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert_clean(&root, &files_under(&root, "rs"), violations);
}

/// Every place outside `src/terminal` that writes to the terminal itself: a macro that panics if
/// the terminal is gone, a stream, or a progress bar.
fn terminal_violations(path: &str, source: &str) -> Vec<String> {
    let words = [
        "println!",
        "print!",
        "dbg!",
        "::stdout()",
        "::stderr()",
        "ProgressBar",
        "MultiProgress",
    ];
    if path.starts_with("terminal/") {
        return Vec::new();
    }
    let says = |(at, line): (usize, &str)| {
        let import = line.trim_start().starts_with("use ");
        let imports = import && (line.contains("stdout") || line.contains("stderr"));
        let word = words.into_iter().find(|word| line.contains(word));
        let word = word.or(imports.then_some("std::io"))?;
        Some(format!(
            "src/{path}:{}: `{word}` writes to the terminal: `crate::terminal` does, and survives \
             one that is closed or full",
            at + 1
        ))
    };
    without_comments(source)
        .lines()
        .enumerate()
        .filter_map(says)
        .collect()
}

#[test]
fn one_place_writes_to_the_terminal() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert_clean(&root, &files_under(&root, "rs"), terminal_violations);
    let planted = terminal_violations("stages/run.rs", "\neprintln!(\"here\"); // println!\n");
    assert!(
        planted.len() == 1 && planted[0].starts_with("src/stages/run.rs:2: "),
        "{planted:?}"
    );
}

#[test]
fn the_crates_beneath_know_neither_candle_nor_the_engine() {
    for krate in [ROLLOUT, KERNELS] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(krate.folder);
        let mut files = files_under(&root.join("src"), "rs");
        files.push(root.join("Cargo.toml"));
        assert_clean(&root, &files, |path, source| outward(&krate, path, source));
    }
}

/// Line and imported name of each planted violation, read back from the messages.
#[track_caller]
fn check(path: &str, source: &str, expected: &[(usize, &str)]) {
    let found = violations(path, source);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (message, (line, name)) in found.iter().zip(expected) {
        assert!(
            message.starts_with(&format!("src/{path}:{line}: ")),
            "{message}"
        );
        assert!(message.contains(&format!("{name}`")), "{message}");
    }
}

#[test]
fn downward_imports_pass() {
    check(
        "train/step.rs",
        "use crate::ops::Linear;\nuse crate::{train::x, rlhf::{gae, kl}};\n",
        &[],
    );
    check(
        "rlhf/kl.rs",
        "use candle_core::Tensor;\nuse crate::rlhf::mean;\n",
        &[],
    );
    check("cli.rs", "use crate::commands::generate;\n", &[]);
    check("commands/score.rs", "use crate::cli::Score;\n", &[]);
    check("main.rs", "use crate::anything;\n", &[]);
}

#[test]
fn comments_and_other_crates_are_not_imports() {
    let source = "//! See crate::stages.\nlet x = 1; // crate::train::x\nuse mycrate::train::x;\n";
    check("data/reader.rs", source, &[]);
    check(
        "data/macros.rs",
        "macro_rules! m { () => { $crate::train::x } }\n",
        &[],
    );
}

#[test]
fn planted_upward_imports_are_caught() {
    check(
        "ops/linear.rs",
        "use std::fmt;\nuse crate::train::Step;\n",
        &[(2, "train")],
    );
    check(
        "data.rs",
        "\n\ncrate::stages::ppo::run();\n",
        &[(3, "stages")],
    );
    check(
        "model/llama.rs",
        "use crate::{\n    ops::{Linear, roles},\n    roles::Actor,\n    cli,\n};\n",
        &[(1, "roles"), (1, "cli")],
    );
    check(
        "config/mod.rs",
        "pub(in crate::stages) fn f() {}\nlet url = \"http://a\"; crate::data::g();\n",
        &[(1, "stages"), (2, "data")],
    );
}

#[test]
fn the_pure_layer_imports_nothing_of_ours() {
    check(
        "rlhf/loss.rs",
        "use crate::ops::Linear;\nuse rollout::Token;\nuse kernels::host::row;\n",
        &[(1, "ops"), (2, "rollout"), (3, "kernels")],
    );
}

#[test]
fn names_that_are_no_layer_are_caught() {
    check(
        "ops/linear.rs",
        "use crate::Linear;\nuse crate::*;\n",
        &[(1, "crate::Linear"), (2, "crate::*")],
    );
    let found = violations("helpers/strings.rs", "");
    assert!(
        found.len() == 1 && found[0].contains("`helpers` is not a layer"),
        "{found:?}"
    );
}

#[test]
fn planted_mentions_in_the_crates_beneath_are_caught() {
    let code =
        "// not candle\nuse collimate_rollout::x;\nuse candle_core::Tensor;\nuse collimate::ops;\n";
    let found = outward(&ROLLOUT, "src/lib.rs", code);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("rollout/src/lib.rs:3: names `candle_core`"),
        "{found:?}"
    );
    assert!(
        found[1].starts_with("rollout/src/lib.rs:4: names `collimate`"),
        "{found:?}"
    );

    let manifest = "name = \"collimate-rollout\"\n# no candle here\ncandle-core = \"0.11\"\n";
    let found = outward(&ROLLOUT, "Cargo.toml", manifest);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("rollout/Cargo.toml:3: names `candle-core`"),
        "{found:?}"
    );

    let found = outward(&KERNELS, "src/host/row.rs", "\nuse rollout::generate;\n");
    assert!(
        found.len() == 1 && found[0].starts_with("kernels/src/host/row.rs:2: names `rollout`"),
        "{found:?}"
    );
}
