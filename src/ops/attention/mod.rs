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

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::dispatch::has_kernels;
use super::pool;
use super::profile;
use super::residual::Operation;
use super::storage;
pub use composed::attend as composed;
use kernel::{Blocks, Queries, Scratch, Window};

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
    pub fn from_offsets(offsets: &[usize]) -> Self {
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
    if has_kernels(qkv.device()) {
        qkv.contiguous()?.apply_op1(Fused {
            spec,
            segments: segments.clone(),
        })
    } else {
        composed(qkv, segments, spec)
    }
}

/// [`attend`] as a link of a chain.
pub fn operation(segments: &Segments, spec: Attention) -> Operation {
    Arc::new(Box::new(Fused {
        spec,
        segments: segments.clone(),
    }))
}

struct Fused {
    spec: Attention,
    segments: Segments,
}

impl Fused {
    /// Each pair of a segment and a key head is a task of its own.
    fn tasks(&self) -> Vec<(std::ops::Range<usize>, usize)> {
        self.segments
            .iter()
            .flat_map(|r| (0..self.spec.kv_heads).map(move |h| (r.clone(), h)))
            .collect()
    }

    /// All query heads of one key head in one segment: `[rows, group · head_dim]`.
    fn forward_task(&self, qkv: &[f32], head: usize) -> Vec<f32> {
        let (spec, columns) = (self.spec, self.spec.columns());
        let (rows, width) = (qkv.len() / columns, spec.group() * spec.head_dim);
        let blocks = Blocks::pack(&spec, qkv, head);
        let (refs, mut scratch) = (blocks.refs(), Scratch::default());
        let mut out = vec![0f32; rows * width];
        for member in 0..spec.group() {
            let first = (head * spec.group() + member) * spec.head_dim;
            for start in (0..rows).step_by(kernel::TILE) {
                let end = rows.min(start + kernel::TILE);
                let queries = Queries {
                    data: &qkv[start * columns + first..],
                    stride: columns,
                };
                let column = member * spec.head_dim;
                let out = Window::new(&mut out[start * width..], width, column, spec.head_dim);
                kernel::attend_rows(&spec, queries, start..end, &refs, &mut scratch, out);
            }
        }
        out
    }
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = profile::span("attention");
        let (qkv, columns, width) = (
            storage::slice(s, l)?,
            self.spec.columns(),
            self.spec.outputs(),
        );
        let tasks = self.tasks();
        let parts: Vec<Vec<f32>> = pool::map(&tasks, |(rows, head)| {
            self.forward_task(&qkv[rows.start * columns..rows.end * columns], *head)
        });
        let mut out = vec![0f32; self.segments.tokens() * width];
        let part_width = self.spec.group() * self.spec.head_dim;
        for ((rows, head), part) in tasks.iter().zip(&parts) {
            kernel::scatter_columns(
                part,
                part_width,
                &mut out[rows.start * width..],
                width,
                head * part_width,
            );
        }
        Ok((
            CpuStorage::F32(out),
            Shape::from((self.segments.tokens(), width)),
        ))
    }

    fn bwd(&self, qkv: &Tensor, out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = profile::span("attention backward");
        let grad = grad.contiguous()?;
        let dqkv = storage::read(qkv, |qkv| {
            storage::read(out, |out| {
                storage::read(&grad, |grad| {
                    backward::run(self.spec, &self.tasks(), qkv, out, grad)
                })
            })
        })???;
        Ok(Some(Tensor::from_vec(dqkv, qkv.dims(), qkv.device())?))
    }
}
