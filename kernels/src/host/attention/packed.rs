//! Attention of packed sequences.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::kernel::{Blocks, Queries, attend};
use crate::attention::{Attention, Segments};
use crate::host::pool;
use crate::host::product::Destination;
use crate::host::product::lanes::Line;
use crate::host::written::written;

/// Attention within each segment: `[tokens, columns]` → `[tokens, query_heads · head_dim]`.
///
/// # Panics
/// If `qkv` does not hold a row for each token, or the heads do not fit
/// ([`Attention::check_heads`]): a bug of the caller.
pub fn forward(spec: Attention, segments: &Segments, qkv: &[f32]) -> Vec<f32> {
    let tasks = tasks(&spec, segments, qkv);
    let (columns, width) = (spec.columns(), spec.outputs());
    let write = |out: &mut [MaybeUninit<f32>]| {
        let out = Destination::new(out, width);
        pool::for_each(tasks, |(rows, head)| {
            let qkv = &qkv[rows.start * columns..rows.end * columns];
            // SAFETY: two tasks differ in their rows or in their columns.
            unsafe { forward_task(&spec, qkv, rows.start, head, out) };
        });
    };
    // SAFETY: the segments cover all rows, and the heads all columns.
    unsafe { written(segments.tokens() * width, write) }
}

/// The gradient of `qkv`, given the result `out` of [`forward`] and its gradient `grad`.
///
/// # Panics
/// If `qkv`, `out` or `grad` does not hold a row for each token, or the heads do not fit
/// ([`Attention::check_heads`]): a bug of the caller.
pub fn backward(
    spec: Attention,
    segments: &Segments,
    qkv: &[f32],
    out: &[f32],
    grad: &[f32],
) -> Vec<f32> {
    let tasks = tasks(&spec, segments, qkv);
    let outputs = segments.tokens() * spec.outputs();
    assert_eq!([out.len(), grad.len()], [outputs; 2], "rows of attention");
    super::backward::run(spec, &tasks, qkv, out, grad)
}

/// Rows and key head of each task: one per pair of a segment and a key head.
fn tasks(spec: &Attention, segments: &Segments, qkv: &[f32]) -> Vec<(Range<usize>, usize)> {
    spec.check_heads();
    let rows = segments.tokens() * spec.columns();
    assert_eq!(qkv.len(), rows, "rows of attention");
    segments
        .iter()
        .flat_map(|r| (0..spec.kv_heads).map(move |h| (r.clone(), h)))
        .collect()
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

/// Computes all query heads of one key head in the segment that begins at row `first`.
///
/// # Safety
/// No other thread may access these heads' columns of the segment's rows of `out`.
unsafe fn forward_task(spec: &Attention, qkv: &[f32], first: usize, head: usize, out: Destination) {
    let columns = spec.columns();
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
            unsafe { attend(&queries, scores, out.below(first).right(column)) };
        }
    });
}
