//! Heads in a file that also has the embedding to which they are tied.

use super::{Weights, WeightsError};
use crate::model::config::{LM_HEAD, SCORE, TensorSpec, weight};

impl Weights {
    /// Checks that a tied model's head equals its embedding if the files have both, because
    /// transformers does not tie tensors that differ.
    ///
    /// # Errors
    /// If head and embedding differ.
    pub(super) fn check_heads(&self, specs: &[TensorSpec]) -> Result<(), WeightsError> {
        let is_read = |head: &str| specs.iter().any(|spec| spec.name == weight(head));
        let has_head = self.tensors.contains_key(&weight(LM_HEAD));
        match has_head && !is_read(LM_HEAD) && !is_read(SCORE) {
            true => self.check_tied(specs),
            false => Ok(()),
        }
    }

    fn check_tied(&self, specs: &[TensorSpec]) -> Result<(), WeightsError> {
        let Some(embedding) = specs.first() else {
            return Ok(());
        };
        let head = TensorSpec {
            name: weight(LM_HEAD),
            ..embedding.clone()
        };
        match self.same_values(&head, embedding)? {
            true => Ok(()),
            false => Err(WeightsError::NotTied {
                place: self.place().to_owned(),
                embedding: embedding.name.clone(),
            }),
        }
    }

    /// Whether two tensors have the same values. For tensors of one type the bytes are compared,
    /// without loading the values.
    fn same_values(&self, a: &TensorSpec, b: &TensorSpec) -> Result<bool, WeightsError> {
        let ((_, ours), (_, theirs)) = (self.entry(a)?, self.entry(b)?);
        if ours.dtype != theirs.dtype {
            return Ok(self.load(a)? == self.load(b)?);
        }
        let shard = &self.shards[ours.shard];
        let other = &self.shards[theirs.shard].stored;
        let same = shard
            .stored
            .same_bytes(ours.range.clone(), other, theirs.range.clone());
        same.map_err(|source| WeightsError::Read {
            file: shard.file.clone(),
            source,
        })
    }
}
