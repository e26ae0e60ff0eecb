//! Markdown pages, with their links, headings and code blocks.

use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A Markdown page of the repository.
pub struct Page {
    /// Path from the root of the repository.
    pub path: PathBuf,
    pub text: String,
}

/// A fenced code block.
pub struct Block {
    /// Words of the info string, such as `["jsonl", "sft"]`.
    pub words: Vec<String>,
    pub text: String,
    /// `file:line` of its first line, for messages.
    pub place: String,
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README and all pages of the documentation.
pub fn pages() -> Vec<Page> {
    let named = [
        "README.md",
        "CONTRIBUTING.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
    ];
    let named = named.map(PathBuf::from).into_iter();
    let others = ["benches/README.md", "configs/data/README.md"].map(PathBuf::from);
    let docs = fs::read_dir(root().join("docs")).expect("docs/");
    let docs = docs.map(|entry| Path::new("docs").join(entry.expect("an entry").file_name()));
    let docs = docs.filter(|path| path.extension().is_some_and(|end| end == "md"));
    named.chain(others).chain(docs).map(Page::read).collect()
}

impl Page {
    /// Reads the page at a path from the root.
    pub fn read(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let text = fs::read_to_string(root().join(&path));
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text }
    }

    fn events(&self) -> impl Iterator<Item = (Event<'_>, usize)> {
        let parser = Parser::new_ext(&self.text, Options::ENABLE_TABLES);
        parser
            .into_offset_iter()
            .map(|(event, range)| (event, range.start))
    }

    /// Targets of the page's links and images.
    pub fn links(&self) -> Vec<String> {
        let target = |event| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                Some(dest_url.to_string())
            }
            _ => None,
        };
        self.events()
            .filter_map(|(event, _)| target(event))
            .collect()
    }

    /// Inline code of the page, outside of code blocks.
    pub fn code_spans(&self) -> Vec<String> {
        let span = |event| match event {
            Event::Code(code) => Some(code.to_string()),
            _ => None,
        };
        self.events().filter_map(|(event, _)| span(event)).collect()
    }

    /// Texts of the page's headings; inline code is given apart.
    pub fn headings(&self) -> Vec<Heading> {
        let (mut headings, mut inside) = (Vec::new(), false);
        for (event, _) in self.events() {
            match event {
                Event::Start(Tag::Heading { .. }) => {
                    headings.push(Heading::default());
                    inside = true;
                }
                Event::End(TagEnd::Heading(_)) => inside = false,
                Event::Text(text) if inside => headings.last_mut().unwrap().text += &text,
                Event::Code(code) if inside => {
                    let heading = headings.last_mut().unwrap();
                    heading.text += &code;
                    heading.code.push(code.to_string());
                }
                _ => {}
            }
        }
        headings
    }

    /// The page's fenced code blocks.
    pub fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut inside) = (Vec::new(), false);
        for (event, start) in self.events() {
            match event {
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                    let line = self.text[..start].matches('\n').count() + 2;
                    blocks.push(Block {
                        words: info.split(',').map(str::to_owned).collect(),
                        text: String::new(),
                        place: format!("{}:{line}", self.path.display()),
                    });
                    inside = true;
                }
                Event::End(TagEnd::CodeBlock) => inside = false,
                Event::Text(text) if inside => blocks.last_mut().unwrap().text += &text,
                _ => {}
            }
        }
        blocks
    }
}

/// A heading of a page.
#[derive(Default)]
pub struct Heading {
    /// All of its text.
    pub text: String,
    /// Its inline code.
    pub code: Vec<String>,
}

impl Block {
    /// Whether the block is in this language.
    pub fn is(&self, language: &str) -> bool {
        self.words[0] == language
    }

    /// Whether the info string has this word after the language.
    pub fn has(&self, word: &str) -> bool {
        self.words[1..].iter().any(|found| found == word)
    }

    /// The name under which the block is saved.
    pub fn file_name(&self) -> Option<&str> {
        let mut words = self.words[1..].iter();
        words.find(|word| word.contains('.')).map(String::as_str)
    }
}
