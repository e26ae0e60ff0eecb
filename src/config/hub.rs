//! Models named as on the Hugging Face hub: `OWNER/NAME`, or `OWNER/NAME@REVISION`.

use std::fmt;
use std::path::Path;

/// The name of a model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// `OWNER/NAME`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl HubName {
    /// Reads `path` as a name: two words of letters, digits, `-`, `_` and `.` that do not begin
    /// with a dot.
    ///
    /// A relative folder may look the same; an existing folder takes precedence.
    pub fn parse(path: &Path) -> Option<Self> {
        let text = path.to_str()?;
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = repo.split_once('/')?;
        (is_word(owner) && is_word(name) && !revision.is_empty()).then(|| Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.revision)
    }
}

fn is_word(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && !text.starts_with('.') && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(String, String)> {
        HubName::parse(Path::new(text)).map(|name| (name.repo, name.revision))
    }

    #[test]
    fn names_and_revisions() {
        let named = |repo: &str, revision: &str| Some((repo.to_owned(), revision.to_owned()));
        assert_eq!(
            parse("Qwen/Qwen2.5-0.5B"),
            named("Qwen/Qwen2.5-0.5B", "main")
        );
        assert_eq!(parse("a/b@v1.0"), named("a/b", "v1.0"));
    }

    #[test]
    fn paths_are_no_names() {
        for path in [
            "model", "./model", "../model", "/a/b", "a/b/c", "a/", "/b", "a/b@", "a b/c",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
