//! Causal grouped-query attention (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023), optionally in a sliding window
//! (Jiang et al. 2023, §2).
//!
//! Rows of `qkv` hold `q | k | v`, `(query + 2·key_value) · size` columns. In training several sequences lie one after the
//! other and attention never crosses a segment's border ([`attend`]); in generation keys and values come from a block-paged
//! cache ([`cached`]). Both go through [`kernel`], whose sums have one order, so both give the same bits.

mod backward;
pub mod cached;
mod composed;
pub(crate) mod kernel;

use std::borrow::Cow;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::operation::{Link, Operation, apply, noted};
use super::pool;
use super::product::Destination;
use super::product::lanes::Line;
use super::storage;
pub use composed::attend as composed;
use kernel::{Blocks, Queries};

/// Shape and scale of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub query_heads: usize,
    /// Key and value heads; divides `query_heads`.
    pub kv_heads: usize,
    /// Columns of one head.
    pub head_dim: usize,
    /// Factor of the scores, `1/√head_dim` as a rule.
    pub scale: f32,
    /// A query sees itself and at most `window − 1` tokens before.
    pub window: Option<usize>,
}

impl Attention {
    /// Columns of a `q | k | v` row.
    pub fn columns(&self) -> usize {
        (self.query_heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Columns of the result.
    pub fn outputs(&self) -> usize {
        self.query_heads * self.head_dim
    }

    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// First column of key head `head`; its values lie `kv_heads` heads later.
    fn key_column(&self, head: usize) -> usize {
        (self.query_heads + head) * self.head_dim
    }

    fn value_column(&self, head: usize) -> usize {
        (self.query_heads + self.kv_heads + head) * self.head_dim
    }

    /// The first key that the query at `position` sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w))
    }

    /// # Panics
    /// If query heads cannot be shared out among key heads, which a model's configuration is checked for: a bug of the caller.
    fn check_heads(&self) {
        assert!(
            self.kv_heads > 0 && self.query_heads.is_multiple_of(self.kv_heads),
            "{} query heads for {} key heads",
            self.query_heads,
            self.kv_heads
        );
    }

    fn check(&self, qkv: &Tensor, segments: &Segments) -> Result<()> {
        if qkv.dims() != [segments.tokens(), self.columns()] {
            bail!(
                "attention: input {:?} where [{}, {}] is needed",
                qkv.dims(),
                segments.tokens(),
                self.columns()
            );
        }
        Ok(())
    }
}

/// Where each packed sequence begins and ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments(Arc<[usize]>);

impl Segments {
    /// From the lengths of the sequences.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut offsets = vec![0];
        offsets.extend(lengths.into_iter().scan(0, |at, n| {
            *at += n;
            Some(*at)
        }));
        Self(offsets.into())
    }

    /// From where each sequence begins, and where the last ends.
    ///
    /// # Panics
    /// If they do not ascend from 0: a bug of the caller.
    pub fn from_offsets(offsets: &[usize]) -> Self {
        assert!(
            offsets.first().is_none_or(|&first| first == 0) && offsets.is_sorted(),
            "segments must ascend from 0"
        );
        Self(offsets.into())
    }

    /// Number of tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.0.last().copied().unwrap_or(0)
    }

    /// The range of rows of each sequence.
    pub fn iter(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.0.windows(2).map(|w| w[0]..w[1])
    }

    /// The row of each sequence's last token.
    ///
    /// # Errors
    /// If a sequence is empty: it has none.
    pub fn last_rows(&self) -> Result<Vec<u32>> {
        if let Some(empty) = self.iter().position(|rows| rows.is_empty()) {
            bail!("sequence {empty} of a packed batch is empty and has no last token");
        }
        Ok(self.iter().map(|rows| rows.end as u32 - 1).collect())
    }

    /// Position of each token in its sequence.
    pub fn positions(&self) -> Vec<u32> {
        self.iter().flat_map(|r| 0..r.len() as u32).collect()
    }
}

/// Attention inside each segment: `[tokens, columns]` → `[tokens, query_heads · head_dim]`.
///
/// # Errors
/// If the shapes disagree or the device fails.
pub fn attend(qkv: &Tensor, segments: &Segments, spec: Attention) -> Result<Tensor> {
    spec.check(qkv, segments)?;
    apply(qkv, Fused::new(segments, spec))
}

/// [`attend`] on rows, without a graph.
///
/// # Errors
/// If the shapes disagree.
pub fn attend_rows(qkv: &[f32], segments: &Segments, spec: Attention) -> Result<Vec<f32>> {
    let operation = Fused::new(segments, spec);
    noted(operation.names()[0], || {
        operation.forward(qkv, segments.tokens())
    })
}

/// [`attend`] as a link of a chain.
pub fn link(segments: &Segments, spec: Attention) -> Link {
    Arc::new(Fused::new(segments, spec))
}

struct Fused {
    spec: Attention,
    segments: Segments,
}

impl Fused {
    fn new(segments: &Segments, spec: Attention) -> Self {
        spec.check_heads();
        Self {
            spec,
            segments: segments.clone(),
        }
    }

    /// Each pair of a segment and a key head is a task of its own.
    fn tasks(&self) -> Vec<(std::ops::Range<usize>, usize)> {
        self.segments
            .iter()
            .flat_map(|r| (0..self.spec.kv_heads).map(move |h| (r.clone(), h)))
            .collect()
    }

    /// All query heads of one key head in one segment, whose first row is `first`.
    ///
    /// # Safety
    /// Nobody else may touch those heads' columns of the segment's rows of `out` meanwhile.
    unsafe fn forward_task(&self, qkv: &[f32], first: usize, head: usize, out: Destination) {
        let (spec, columns) = (&self.spec, self.spec.columns());
        SCRATCH.with_borrow_mut(|Scratch { blocks, scores }| {
            spec.pack_blocks(qkv, head, blocks);
            for member in 0..spec.group() {
                let column = (head * spec.group() + member) * spec.head_dim;
                let queries = Queries {
                    spec,
                    data: &qkv[column.min(qkv.len())..],
                    stride: columns,
                    position: 0,
                    step: 1,
                    count: qkv.len() / columns,
                    blocks: Blocks {
                        data: blocks,
                        ids: None,
                        stride: spec.block_lines(),
                        offset: 0,
                    },
                };
                // SAFETY: the caller's.
                unsafe { kernel::attend(&queries, scores, out.below(first).right(column)) };
            }
        });
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { blocks: Vec::new(), scores: Vec::new() }) };
}

/// Buffers that tasks of a thread share.
struct Scratch {
    blocks: Vec<Line>,
    scores: Vec<f32>,
}

impl Operation for Fused {
    fn names(&self) -> [&'static str; 2] {
        ["attention", "attention backward"]
    }

    fn forward(&self, qkv: &[f32], _rows: usize) -> Result<Vec<f32>> {
        assert_eq!(
            qkv.len(),
            self.segments.tokens() * self.spec.columns(),
            "rows of attention"
        );
        let (columns, width) = (self.spec.columns(), self.spec.outputs());
        let write = |out: &mut [MaybeUninit<f32>]| {
            let out = Destination::new(out, width);
            pool::for_each(self.tasks(), |(rows, head)| {
                let qkv = &qkv[rows.start * columns..rows.end * columns];
                // SAFETY: tasks differ in their rows or their columns.
                unsafe { self.forward_task(qkv, rows.start, head, out) };
            });
        };
        // SAFETY: the segments' rows are all rows, and the heads' columns all columns.
        Ok(unsafe { storage::written(self.segments.tokens() * width, write) })
    }

    fn backward(&self, qkv: &[f32], out: &[f32], grad: Cow<[f32]>, _: usize) -> Result<Vec<f32>> {
        Ok(backward::run(self.spec, &self.tasks(), qkv, out, &grad))
    }
}
