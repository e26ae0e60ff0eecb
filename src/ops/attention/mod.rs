//! Causal grouped-query attention (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023), optionally in
//! a sliding window (Jiang et al. 2023, §2).
//!
//! Rows of `qkv` hold `q | k | v`, `(query_heads + 2·kv_heads) · head_dim` columns. In training,
//! sequences are packed one after the other and attention never crosses the border of a segment
//! ([`attend`]). In generation, keys and values come from a block-paged cache ([`cached`]). Both
//! use `kernel`, whose sums have one order, so both give the same bits.

mod backward;
pub mod cached;
mod composed;
pub(crate) mod kernel;

use std::borrow::Cow;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::operation::{Link, Operation, OperationKind, apply, profiled};
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

    /// First column of the keys of head `head`; its values follow `kv_heads` heads later.
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
    /// If the number of query heads is not a multiple of the key heads. Configurations of models
    /// are checked for this, so it is a bug of the caller.
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
    pub fn iter(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.0.windows(2).map(|w| w[0]..w[1])
    }

    /// The row of each sequence's last token.
    ///
    /// # Errors
    /// If a sequence is empty and has no last token.
    pub fn last_rows(&self) -> Result<Vec<u32>> {
        if let Some(empty) = self.iter().position(|rows| rows.is_empty()) {
            bail!("sequence {empty} of a packed batch is empty and has no last token");
        }
        Ok(self.iter().map(|rows| rows.end as u32 - 1).collect())
    }

    /// Position of each token within its sequence.
    pub fn positions(&self) -> Vec<u32> {
        self.iter().flat_map(|r| 0..r.len() as u32).collect()
    }
}

/// Attention within each segment, on the CPU: `[tokens, columns]` → `[tokens, query_heads ·
/// head_dim]`.
///
/// # Errors
/// If the shapes disagree or the device fails.
pub fn attend(qkv: &Tensor, segments: &Segments, spec: Attention) -> Result<Tensor> {
    spec.check(qkv, segments)?;
    apply(qkv, PackedAttention::new(segments, spec))
}

/// [`attend`] on plain rows, without a graph.
///
/// # Errors
/// If the shapes disagree.
pub fn attend_rows(qkv: &[f32], segments: &Segments, spec: Attention) -> Result<Vec<f32>> {
    let operation = PackedAttention::new(segments, spec);
    profiled(operation.names()[0], || {
        operation.forward(qkv, segments.tokens())
    })
}

/// [`attend`] as a link of a chain.
pub fn link(segments: &Segments, spec: Attention) -> Link {
    Arc::new(PackedAttention::new(segments, spec))
}

struct PackedAttention {
    spec: Attention,
    segments: Segments,
}

impl PackedAttention {
    fn new(segments: &Segments, spec: Attention) -> Self {
        spec.check_heads();
        Self {
            spec,
            segments: segments.clone(),
        }
    }

    /// Rows and key head of each task: one per pair of a segment and a key head.
    fn tasks(&self) -> Vec<(std::ops::Range<usize>, usize)> {
        self.segments
            .iter()
            .flat_map(|r| (0..self.spec.kv_heads).map(move |h| (r.clone(), h)))
            .collect()
    }

    /// Computes all query heads of one key head in the segment that begins at row `first`.
    ///
    /// # Safety
    /// No other thread may access these heads' columns of the segment's rows of `out`.
    unsafe fn forward_task(&self, qkv: &[f32], first: usize, head: usize, out: Destination) {
        let (spec, columns) = (&self.spec, self.spec.columns());
        BUFFERS.with_borrow_mut(|ForwardBuffers { blocks, scores }| {
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
                // SAFETY: the caller keeps this function's contract.
                unsafe { kernel::attend(&queries, scores, out.below(first).right(column)) };
            }
        });
    }
}

thread_local! {
    static BUFFERS: RefCell<ForwardBuffers> = const {
        RefCell::new(ForwardBuffers {
            blocks: Vec::new(),
            scores: Vec::new(),
        })
    };
}

/// Buffers that the tasks of a thread share.
struct ForwardBuffers {
    blocks: Vec<Line>,
    scores: Vec<f32>,
}

impl Operation for PackedAttention {
    fn names(&self) -> [&'static str; 2] {
        ["attention", "attention backward"]
    }

    fn kind(&self) -> OperationKind {
        OperationKind::Attention(self.spec.outputs())
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
                // SAFETY: two tasks differ in their rows or in their columns.
                unsafe { self.forward_task(qkv, rows.start, head, out) };
            });
        };
        // SAFETY: the segments cover all rows, and the heads all columns.
        Ok(unsafe { storage::written(self.segments.tokens() * width, write) })
    }

    fn backward(&self, qkv: &[f32], out: &[f32], grad: Cow<[f32]>, _: usize) -> Result<Vec<f32>> {
        Ok(backward::run(self.spec, &self.tasks(), qkv, out, &grad))
    }
}
