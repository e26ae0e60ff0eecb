//! The valence of a text by a word list: the sum of its words' values, unknown words counting zero.
//!
//! Words are runs of ASCII letters and apostrophes, in lower case and without apostrophes at their
//! ends. Negation and emphasis are ignored.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::files::regular;

/// An error of reading a word list.
#[derive(Debug, thiserror::Error)]
pub enum LexiconError {
    /// The file cannot be read.
    #[error("{}: cannot be read", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// A line is not `word<TAB>number`.
    #[error(
        "{}:{line}: found {found:?}; each line is a word, a tab and a finite number",
        .file.display()
    )]
    Line {
        /// The file.
        file: PathBuf,
        /// Line number, counted from 1.
        line: usize,
        /// The line.
        found: String,
    },
}

/// The valence of each word.
pub struct Lexicon(HashMap<String, f64>);

/// The valence of one text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Valence {
    /// Sum over the words.
    pub sum: f64,
    /// Number of words.
    pub words: usize,
}

impl Valence {
    /// Sum per word; 0 without words.
    pub fn per_word(&self) -> f64 {
        if self.words == 0 {
            0.0
        } else {
            self.sum / self.words as f64
        }
    }
}

impl Lexicon {
    /// Reads `word<TAB>value` lines.
    ///
    /// # Errors
    /// If the file cannot be read or a line is not `word<TAB>value`.
    pub fn read(file: &Path) -> Result<Self, LexiconError> {
        let text = regular::read_text(file).map_err(|e| LexiconError::Read(file.to_owned(), e))?;
        let entry = |(index, line): (usize, &str)| {
            parse(line).ok_or_else(|| LexiconError::Line {
                file: file.to_owned(),
                line: index + 1,
                found: line.to_owned(),
            })
        };
        Ok(Self(
            text.lines()
                .enumerate()
                .filter(|(_, line)| !line.is_empty())
                .map(entry)
                .collect::<Result<_, _>>()?,
        ))
    }

    /// The valence of `text`.
    pub fn valence(&self, text: &str) -> Valence {
        let words = text
            .split(|c: char| !(c.is_ascii_alphabetic() || c == '\''))
            .map(|word| word.trim_matches('\''))
            .filter(|word| !word.is_empty());
        words.fold(Valence { sum: 0.0, words: 0 }, |valence, word| Valence {
            sum: valence.sum
                + self
                    .0
                    .get(&word.to_ascii_lowercase())
                    .copied()
                    .unwrap_or(0.0),
            words: valence.words + 1,
        })
    }
}

fn parse(line: &str) -> Option<(String, f64)> {
    let (word, value) = line.split_once('\t')?;
    let value = value.trim().parse().ok().filter(|v: &f64| v.is_finite())?;
    Some((word.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_a_finite_number_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lexicon.tsv");
        for line in ["sad", "sad\thigh", "sad\tnan", "sad\t-inf"] {
            std::fs::write(&file, format!("happy\t2.7\n{line}\n")).unwrap();
            let message = Lexicon::read(&file).err().unwrap().to_string();
            assert!(message.contains("lexicon.tsv:2"), "{line}: {message}");
        }
    }

    #[test]
    fn words_are_found_whatever_stands_around_them() {
        let lexicon = Lexicon(HashMap::from([
            ("happy".into(), 2.7),
            ("won't".into(), -0.5),
        ]));
        let valence = lexicon.valence("\"Happy, HAPPY!\" she 'won't' say; unhappy.");
        assert!((valence.sum - 4.9).abs() < 1e-12);
        assert_eq!(valence.words, 6);
        assert_eq!(lexicon.valence("— 12 …").per_word(), 0.0);
    }
}
