//! Links, and paths in inline code, resolve.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::page::{Page, pages, root};

/// Folders whose paths, written as inline code, must exist.
const FOLDERS: [&str; 7] = [
    "src/",
    "tests/",
    "configs/",
    "benches/",
    "docs/",
    "rollout/src",
    "rollout/tests",
];

#[test]
fn relative_links_and_their_anchors_exist() {
    let mut broken = Vec::new();
    for page in pages() {
        for link in page.links() {
            let is_elsewhere = ["http://", "https://", "mailto:"];
            if is_elsewhere.iter().any(|scheme| link.starts_with(scheme)) {
                continue;
            }
            if let Some(why) = objection(&page, &link) {
                broken.push(format!("{}: {link}: {why}", page.path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn paths_in_inline_code_exist() {
    let mut missing = Vec::new();
    for page in pages() {
        for code in page.code_spans() {
            let is_path = FOLDERS.iter().any(|folder| code.starts_with(folder))
                && !code.contains([' ', '…', '*', '{', '<']);
            if is_path && !root().join(&code).exists() {
                missing.push(format!("{}: {code}", page.path.display()));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "paths that are not there:\n{}",
        missing.join("\n")
    );
}

/// The fault of a link that does not resolve; `None` if it does.
fn objection(page: &Page, link: &str) -> Option<&'static str> {
    let (path, anchor) = match link.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (link, None),
    };
    let folder = page.path.parent().unwrap_or(Path::new(""));
    let target = match path.is_empty() {
        true => page.path.clone(),
        false => normal(&folder.join(path)),
    };
    if !root().join(&target).exists() {
        return Some("no such file");
    }
    let anchor = anchor?;
    let anchors = anchors(&Page::read(target));
    (!anchors.iter().any(|known| known == anchor)).then_some("no such heading")
}

/// The path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

/// Anchors of the page's headings, as GitHub and mdBook make them.
fn anchors(page: &Page) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let anchor = |text: String| {
        let text = text.to_lowercase();
        let kept = text.chars().filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        });
        let slug: String = kept.collect();
        let times = seen.entry(slug.clone()).or_default();
        *times += 1;
        match *times {
            1 => slug,
            more => format!("{slug}-{}", more - 1),
        }
    };
    page.headings()
        .into_iter()
        .map(|heading| heading.text)
        .map(anchor)
        .collect()
}
