//! Rows without padding: a text stream cut into rows, and sequences of any lengths laid end to end
//! as segments.
//!
//! Attention never crosses a segment, and positions restart in each. A row of pretraining text is
//! one segment: its documents attend to each other across EOS, as in GPT-2 and most later models.

use std::sync::Arc;

use super::error::{DataError, Result};
use super::example::Example;

/// A row of pretraining text: `context` tokens of a stream and the token that follows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextRow {
    stream: Arc<[u32]>,
    start: usize,
    end: usize,
}

impl TextRow {
    /// The row's tokens, the last of which is only predicted.
    pub fn ids(&self) -> &[u32] {
        &self.stream[self.start..self.end]
    }
}

/// Joins documents, each with `eos` at its end, and cuts them into rows of `context` tokens.
///
/// Each token except the first is predicted in at most one row; a tail that does not fill a row is
/// left out.
///
/// # Errors
/// If `context` is 0, or the text does not fill one row.
pub fn text_rows(documents: &[Vec<u32>], eos: u32, context: usize) -> Result<Vec<TextRow>> {
    let total: usize = documents.iter().map(|document| document.len() + 1).sum();
    let mut tokens = Vec::with_capacity(total);
    for document in documents {
        tokens.extend_from_slice(document);
        tokens.push(eos);
    }
    if context == 0 || tokens.len() <= context {
        return Err(DataError::Invalid(format!(
            "the text has {} tokens, but one row needs {context} and the token after; give more \
             text or a smaller context (at least 1)",
            tokens.len()
        )));
    }
    let stream: Arc<[u32]> = tokens.into();
    let rows = (stream.len() - 1) / context;
    let row = |index| TextRow {
        stream: Arc::clone(&stream),
        start: index * context,
        end: (index + 1) * context + 1,
    };
    Ok((0..rows).map(row).collect())
}

/// Sequences laid end to end, each without its last token, which predicts no other; and the target
/// tokens that the loss counts.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedBatch {
    /// Input tokens, `[N]`.
    pub ids: Vec<u32>,
    /// Offsets of the segments, `[B + 1]`: segment b is `ids[segments[b]..segments[b + 1]]`.
    pub segments: Vec<usize>,
    /// The rows of `ids` that predict a target, ascending, `[n]`.
    pub rows: Vec<u32>,
    /// The target tokens, `[n]`.
    pub targets: Vec<u32>,
    /// Offsets of each sequence's tokens among `targets`, `[B + 1]`.
    pub offsets: Vec<usize>,
}

impl Default for PackedBatch {
    fn default() -> Self {
        Self {
            ids: Vec::new(),
            segments: vec![0],
            rows: Vec::new(),
            targets: Vec::new(),
            offsets: vec![0],
        }
    }
}

impl PackedBatch {
    /// Adds a sequence, in which the tokens at the ascending positions `counted` are targets,
    /// except the first token, which no token predicts.
    pub fn push(&mut self, ids: &[u32], counted: impl IntoIterator<Item = usize>) {
        let start = self.ids.len();
        let counted = counted.into_iter();
        for position in counted.filter(|&position| (1..ids.len()).contains(&position)) {
            self.rows.push((start + position - 1) as u32);
            self.targets.push(ids[position]);
        }
        self.ids.extend(&ids[..ids.len().saturating_sub(1)]);
        self.segments.push(self.ids.len());
        self.offsets.push(self.targets.len());
    }

    /// A batch of examples, with the answers' tokens as targets.
    ///
    /// # Errors
    /// If there is no example, or one has fewer than two tokens.
    pub fn from_examples(examples: &[&Example]) -> Result<Self> {
        let rows = examples.iter().map(|example| {
            let counted = example.answer.iter().cloned().flatten();
            (example.ids.as_slice(), counted)
        });
        Self::of(rows)
    }

    /// A batch of rows of text, with every token as a target.
    ///
    /// # Errors
    /// If there is no row, or one has fewer than two tokens.
    pub fn from_rows(rows: &[&TextRow]) -> Result<Self> {
        Self::of(rows.iter().map(|row| (row.ids(), 1..row.ids().len())))
    }

    /// Number of input tokens.
    pub fn token_count(&self) -> usize {
        self.ids.len()
    }

    fn of<'r, C: IntoIterator<Item = usize>>(
        rows: impl Iterator<Item = (&'r [u32], C)>,
    ) -> Result<Self> {
        let mut batch = Self::default();
        for (row, (ids, counted)) in rows.enumerate() {
            if ids.len() < 2 {
                return Err(DataError::Invalid(format!(
                    "row {row} of the batch has {} tokens; expected at least 2",
                    ids.len()
                )));
            }
            batch.push(ids, counted);
        }
        match batch.ids.is_empty() {
            true => Err(DataError::Invalid("a batch needs at least one row".into())),
            false => Ok(batch),
        }
    }
}

/// Cuts items (by index) into runs of at most `limit` tokens, in order; a larger item is a run of
/// its own.
pub fn cut(items: Vec<usize>, tokens: impl Fn(usize) -> usize, limit: usize) -> Vec<Vec<usize>> {
    let (mut runs, mut held) = (Vec::<Vec<usize>>::new(), 0);
    for item in items {
        let size = tokens(item);
        match runs.last_mut() {
            Some(run) if held + size <= limit => run.push(item),
            _ => {
                runs.push(vec![item]);
                held = 0;
            }
        }
        held += size;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_predicted_once() {
        let rows = text_rows(&[vec![1, 2, 3], vec![4], vec![], vec![5, 6]], 0, 3).unwrap();
        let ids: Vec<&[u32]> = rows.iter().map(TextRow::ids).collect();
        assert_eq!(ids, [[1, 2, 3, 0], [0, 4, 0, 0], [0, 5, 6, 0]]);
        let e = text_rows(&[vec![1]], 0, 3).unwrap_err().to_string();
        assert!(e.contains("2 tokens") && e.contains("needs 3"), "{e}");
    }

    #[test]
    fn only_answers_of_the_same_segment_count() {
        let a = Example {
            ids: vec![1, 2, 3, 4],
            answer: vec![2..3, 3..4],
        };
        let b = Example {
            ids: vec![5, 6],
            answer: vec![0..1, 1..2],
        };
        let batch = PackedBatch::from_examples(&[&a, &b]).unwrap();
        assert_eq!(batch.ids, [1, 2, 3, 5]);
        assert_eq!(batch.segments, [0, 3, 4]);
        assert_eq!((batch.rows, batch.targets), (vec![1, 2, 3], vec![3, 4, 6]));
        assert_eq!(batch.offsets, [0, 2, 3]);
    }

    #[test]
    fn every_token_of_a_row_counts() {
        let rows = text_rows(&[vec![1, 2, 3, 4, 5]], 0, 2).unwrap();
        let batch = PackedBatch::from_rows(&rows.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(
            (batch.ids, batch.targets),
            (vec![1, 2, 3, 4], vec![2, 3, 4, 5])
        );
        assert_eq!(batch.rows, [0, 1, 2, 3]);
    }

    #[test]
    fn short_rows_are_errors() {
        assert!(PackedBatch::from_rows(&[]).is_err());
        let example = |ids: &[u32]| Example {
            ids: ids.to_vec(),
            answer: Vec::new(),
        };
        let (fits, short) = (example(&[1, 2]), example(&[3]));
        let e = PackedBatch::from_examples(&[&fits, &short])
            .unwrap_err()
            .to_string();
        assert!(e.contains("row 1") && e.contains("at least 2"), "{e}");
    }
}
