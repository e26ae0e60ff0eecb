//! Shapes of causal grouped-query attention (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023),
//! optionally in a sliding window (Jiang et al. 2023, §2).
//!
//! Rows of `qkv` hold `q | k | v`, `(query_heads + 2·kv_heads) · head_dim` columns. In training,
//! sequences are packed one after the other, and attention never crosses the border of a segment
//! ([`Segments`]). In generation, keys and values come from a block-paged cache ([`NewTokens`]).

use std::ops::Range;
use std::sync::Arc;

/// Shape and scale of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub query_heads: usize,
    /// Key and value heads; divides `query_heads`.
    pub kv_heads: usize,
    /// Columns of one head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1/√head_dim`.
    pub scale: f32,
    /// Size of the sliding window: a query sees itself and at most `window − 1` earlier tokens.
    pub window: Option<usize>,
}

impl Attention {
    /// Columns of a `q | k | v` row.
    pub fn columns(&self) -> usize {
        (self.query_heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Columns of the attention's result.
    pub fn outputs(&self) -> usize {
        self.query_heads * self.head_dim
    }

    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// First column of the keys of head `head`.
    pub fn key_column(&self, head: usize) -> usize {
        (self.query_heads + head) * self.head_dim
    }

    /// First column of the values of head `head`.
    pub fn value_column(&self, head: usize) -> usize {
        (self.query_heads + self.kv_heads + head) * self.head_dim
    }

    /// The first key that the query at `position` sees.
    pub fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w))
    }

    /// Checks that each key head has the same number of query heads.
    ///
    /// # Panics
    /// If the number of query heads is not a multiple of the key heads: a bug of the caller.
    pub fn check_heads(&self) {
        assert!(
            self.kv_heads > 0 && self.query_heads.is_multiple_of(self.kv_heads),
            "{} query heads for {} key heads",
            self.query_heads,
            self.kv_heads
        );
    }
}

/// First row of each packed sequence, and the end of the last one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments(Arc<[usize]>);

impl Segments {
    /// Segments of sequences with these lengths.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut offsets = vec![0];
        offsets.extend(lengths.into_iter().scan(0, |at, n| {
            *at += n;
            Some(*at)
        }));
        Self(offsets.into())
    }

    /// Segments that begin at these rows; the last offset is the end of the last segment.
    ///
    /// # Panics
    /// If the offsets do not ascend from 0: a bug of the caller.
    pub fn from_offsets(offsets: &[usize]) -> Self {
        assert!(
            offsets.first().is_none_or(|&first| first == 0) && offsets.is_sorted(),
            "segments must ascend from 0"
        );
        Self(offsets.into())
    }

    /// Number of tokens of all sequences together.
    pub fn tokens(&self) -> usize {
        self.0.last().copied().unwrap_or(0)
    }

    /// Rows of each sequence.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.0.windows(2).map(|w| w[0]..w[1])
    }

    /// Position of each token within its sequence.
    pub fn positions(&self) -> Vec<u32> {
        self.iter().flat_map(|r| 0..r.len() as u32).collect()
    }
}

/// Tokens in one cache block.
pub const BLOCK_TOKENS: usize = 16;

/// New tokens of one sequence in a step.
#[derive(Clone, Copy, Debug)]
pub struct NewTokens<'a> {
    /// Number of new tokens; their rows follow those of the previous sequence.
    pub count: usize,
    /// Number of tokens that the blocks already hold.
    pub past: usize,
    /// The sequence's blocks in order.
    pub blocks: &'a [u32],
}
