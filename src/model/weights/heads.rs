//! A head in a file beside the embedding that it is tied to.

use super::{Weights, WeightsError};
use crate::model::config::{LM_HEAD, SCORE, TensorSpec, weight};

impl Weights {
    /// Makes sure that a tied model's head is its embedding where the files have both, for transformers does not tie two that differ.
    ///
    /// # Errors
    /// If they differ.
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

    /// True if two tensors have the same values. Of one type their bytes are compared, which takes no memory for the values.
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
