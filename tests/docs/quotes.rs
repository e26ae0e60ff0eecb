//! Messages and metrics that the pages quote occur in the source.

use std::fs;
use std::path::Path;

use super::page::{Page, root};

/// Fewest characters by which a message is recognised.
const SHORTEST: usize = 6;

#[test]
fn messages_of_the_troubleshooting_page_are_in_the_source() {
    let source = ["src", "rollout/src"]
        .map(|folder| literals(&root().join(folder)))
        .concat();
    let page = Page::read("docs/troubleshooting.md");
    let quoted: Vec<String> = page.headings().into_iter().flat_map(|h| h.code).collect();
    assert!(
        quoted.len() > 20,
        "the page quotes {} messages",
        quoted.len()
    );
    let mut unknown = Vec::new();
    for message in quoted {
        // An ellipsis stands for what differs from case to case.
        let parts: Vec<&str> = message.split('…').map(str::trim).collect();
        let known = |part: &&str| part.len() < SHORTEST || source.contains(*part);
        if !parts.iter().all(known) || parts.iter().all(|part| part.len() < SHORTEST) {
            unknown.push(message);
        }
    }
    let list = unknown.join("\n");
    assert!(
        unknown.is_empty(),
        "no such messages in the source:\n{list}"
    );
}

#[test]
fn every_metric_is_explained() {
    let names = fs::read_to_string(root().join("src/train/metrics/names.rs")).expect("names");
    let page = Page::read("docs/metrics.md").text;
    let names = names.lines().filter_map(|line| line.split('"').nth(1));
    let unexplained: Vec<&str> = names
        .filter(|name| !page.contains(&format!("`{name}")))
        .collect();
    assert!(
        page.contains("`nll_loss`"),
        "names without a slash are found too"
    );
    assert!(
        unexplained.is_empty(),
        "docs/metrics.md lacks {unexplained:?}"
    );
}

/// The Rust sources of a folder, with string literals as they are printed: continued lines joined,
/// quotes and braces without their escapes.
fn literals(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => text += &literals(&path),
            false => text += &fs::read_to_string(&path).expect("a source"),
        }
    }
    let mut joined = String::with_capacity(text.len());
    for part in text.split("\\\n") {
        joined += if joined.is_empty() {
            part
        } else {
            part.trim_start()
        };
    }
    joined
        .replace("\\\"", "\"")
        .replace("{{", "{")
        .replace("}}", "}")
}
