//! Rows without padding: a text stream cut into windows, and sequences of any lengths laid end to
//! end as segments.
//!
//! Attention never crosses a segment and positions restart in each. A pretraining window is one
//! segment: documents in it see one another across their EOS, as in GPT-2 and most that came after.

use super::error::{DataError, Result};
use super::example::Example;

/// Documents as one stream of tokens, read in windows of `context` tokens and the one that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    tokens: Vec<u32>,
    context: usize,
}

impl Packed {
    /// Joins documents, each closed by `eos`.
    ///
    /// # Errors
    /// `context` 0, or text for less than one window.
    pub fn new(documents: &[Vec<u32>], eos: u32, context: usize) -> Result<Self> {
        let total: usize = documents.iter().map(|document| document.len() + 1).sum();
        let mut tokens = Vec::with_capacity(total);
        for document in documents {
            tokens.extend_from_slice(document);
            tokens.push(eos);
        }
        if context == 0 || tokens.len() <= context {
            return Err(DataError::Invalid(format!(
                "the text has {} tokens, but one row needs {context} and the token after; give \
                 more text or a smaller \
                 context (at least 1)",
                tokens.len()
            )));
        }
        Ok(Packed { tokens, context })
    }

    /// Number of windows. Each token but the first is a target in at most one; the tail that fills
    /// none is left out.
    pub fn len(&self) -> usize {
        (self.tokens.len() - 1) / self.context
    }

    /// Never: a stream holds at least one window.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens in all, EOS included.
    pub fn token_count(&self) -> usize {
        self.tokens.len()
    }

    /// Window `index`: `context + 1` tokens; none past the end.
    pub fn window(&self, index: usize) -> Option<&[u32]> {
        let start = index.checked_mul(self.context)?;
        self.tokens.get(start..start.checked_add(self.context + 1)?)
    }
}

/// Sequences laid end to end, with the next-token target of each token.
///
/// All four have one entry a token but `segments`. A row's last token is not fed: it is only a
/// target, so a row of n tokens takes n − 1 places.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// Tokens fed, [N].
    pub ids: Vec<u32>,
    /// Offsets of the segments, [B + 1]: segment b is `ids[segments[b]..segments[b + 1]]`.
    pub segments: Vec<usize>,
    /// The token that follows, [N].
    pub targets: Vec<u32>,
    /// 1 where the target counts in the loss, else 0, [N].
    pub valid: Vec<f32>,
}

impl Batch {
    /// Next-token prediction of the answers' tokens.
    ///
    /// # Errors
    /// No example, or one of fewer than two tokens.
    pub fn from_examples(examples: &[&Example]) -> Result<Self> {
        let mut batch = Batch::start(examples.len())?;
        for (row, example) in examples.iter().enumerate() {
            let start = batch.push_shifted(row, &example.ids)?;
            for answer in &example.answer {
                // Token t is predicted at place t − 1; the first of a row by none.
                for t in answer.start.max(1)..answer.end.min(example.ids.len()) {
                    batch.valid[start + t - 1] = 1.0;
                }
            }
        }
        Ok(batch)
    }

    /// Next-token prediction of every token of each window.
    ///
    /// # Errors
    /// No window, or one of fewer than two tokens.
    pub fn from_windows(windows: &[&[u32]]) -> Result<Self> {
        let mut batch = Batch::start(windows.len())?;
        for (row, window) in windows.iter().enumerate() {
            let start = batch.push_shifted(row, window)?;
            batch.valid[start..].fill(1.0);
        }
        Ok(batch)
    }

    /// Tokens fed.
    pub fn token_count(&self) -> usize {
        self.ids.len()
    }

    /// Targets that count.
    pub fn valid_count(&self) -> usize {
        self.valid.iter().filter(|&&v| v != 0.0).count()
    }

    fn start(rows: usize) -> Result<Self> {
        if rows == 0 {
            return Err(DataError::Invalid("a batch needs at least one row".into()));
        }
        Ok(Batch {
            segments: vec![0],
            ..Batch::default()
        })
    }

    /// Adds a row's tokens but the last, and returns where they start; no target counts yet.
    fn push_shifted(&mut self, row: usize, ids: &[u32]) -> Result<usize> {
        if ids.len() < 2 {
            return Err(DataError::Invalid(format!(
                "row {row} of the batch has {} tokens; expected at least 2",
                ids.len()
            )));
        }
        let start = self.ids.len();
        self.ids.extend_from_slice(&ids[..ids.len() - 1]);
        self.targets.extend_from_slice(&ids[1..]);
        self.valid.resize(self.ids.len(), 0.0);
        self.segments.push(self.ids.len());
        Ok(start)
    }
}

/// Cuts items (by index) into runs of at most `limit` tokens, in order; one that is larger stands alone.
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
    fn every_token_but_the_first_is_a_target_once() {
        let packed = Packed::new(&[vec![1, 2, 3], vec![4], vec![], vec![5, 6]], 0, 3).unwrap();
        assert_eq!(packed.token_count(), 10);
        assert_eq!(packed.len(), 3);
        assert_eq!(packed.window(0), Some(&[1, 2, 3, 0][..]));
        assert_eq!(packed.window(1), Some(&[0, 4, 0, 0][..]));
        assert_eq!(packed.window(2), Some(&[0, 5, 6, 0][..]));
        assert_eq!(packed.window(3), None);
        assert_eq!(packed.window(usize::MAX), None);
        let e = Packed::new(&[vec![1]], 0, 3).unwrap_err().to_string();
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
        let batch = Batch::from_examples(&[&a, &b]).unwrap();
        assert_eq!(batch.ids, [1, 2, 3, 5]);
        assert_eq!(batch.segments, [0, 3, 4]);
        assert_eq!(batch.targets, [2, 3, 4, 6]);
        assert_eq!(batch.valid, [0.0, 1.0, 1.0, 1.0]);
        assert_eq!(batch.valid_count(), 3);
    }

    #[test]
    fn every_token_of_a_window_counts() {
        let batch = Batch::from_windows(&[&[1, 2, 3], &[3, 4, 5]]).unwrap();
        assert_eq!(
            (batch.ids, batch.targets),
            (vec![1, 2, 3, 4], vec![2, 3, 4, 5])
        );
        assert_eq!(batch.valid, [1.0; 4]);
    }

    #[test]
    fn short_rows_are_errors() {
        assert!(Batch::from_windows(&[]).is_err());
        let e = Batch::from_windows(&[&[1, 2], &[3]])
            .unwrap_err()
            .to_string();
        assert!(e.contains("row 1") && e.contains("at least 2"), "{e}");
    }
}
