//! Attention within the segments of packed rows, in single precision, after FlashAttention-2
//! (Dao 2023).
//!
//! Scores are made a tile at a time and never stored. A segment's results depend on its own rows
//! alone, to the bit.

use std::ops::Range;

use super::{check as check_spec, check_aligned, window};
use crate::attention::{Attention, Segments};
use crate::device::array::{Array, Gpu, Slice};
use crate::device::call::Call;
use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;
use crate::device::launcher::Grid;

/// Rows of an item of work, as in `attention.cu`.
const ITEM_ROWS: usize = 64;
/// Threads of a block.
const THREADS: u32 = 128;

/// The segments of a packed batch as work for the kernels; all layers use the same.
pub struct PackedSegments {
    tokens: usize,
    count: usize,
    /// Of each item its segment's first row, the segment's length, and the item's first position.
    items: Array<u32>,
}

/// Attention's result, and what its backward pass needs beside the input.
pub struct Attended {
    /// `[tokens, query_heads · head_dim]`
    pub out: Array<f32>,
    /// Logarithms of the sums of exponentials of the scores, `[query_heads, tokens]`.
    pub sums: Array<f32>,
}

impl PackedSegments {
    /// The work of these segments.
    ///
    /// # Errors
    /// More than 2³¹ tokens, and errors of the device.
    pub fn new(gpu: &Gpu, segments: &Segments) -> Result<Self> {
        let tokens = segments.tokens();
        if tokens > 1 << 31 {
            return Err(KernelError::Shape {
                message: format!("{tokens} tokens in a packed batch, where 2^31 are the most"),
            });
        }
        let items_of = |rows: Range<usize>| {
            let starts = (0..rows.len()).step_by(ITEM_ROWS);
            starts.map(move |start| [rows.start, rows.len(), start].map(|n| n as u32))
        };
        let mut items: Vec<[u32; 3]> = segments.iter().flat_map(items_of).collect();
        // Late queries see the most keys: a grid that begins with them ends evenly.
        items.sort_by_key(|&[_, _, start]| std::cmp::Reverse(start));
        Ok(Self {
            tokens,
            count: items.len(),
            items: gpu.upload(&items.concat())?,
        })
    }

    /// Number of tokens of all segments together.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// Kernels for heads of up to `columns` columns.
struct Variant {
    columns: usize,
    /// Rows of a block's tile.
    tile: usize,
    /// Rows of the tile of the other side.
    others: usize,
    forward: Kernel,
    keys: Kernel,
    queries: Kernel,
}

/// The sizes of `ATTENTION_KERNELS` in `attention.cu`.
const VARIANTS: [Variant; 4] = [
    Variant {
        columns: 32,
        tile: 64,
        others: 32,
        forward: Kernel::ATTENTION_FORWARD_32,
        keys: Kernel::ATTENTION_BACKWARD_KEYS_32,
        queries: Kernel::ATTENTION_BACKWARD_QUERIES_32,
    },
    Variant {
        columns: 64,
        tile: 64,
        others: 32,
        forward: Kernel::ATTENTION_FORWARD_64,
        keys: Kernel::ATTENTION_BACKWARD_KEYS_64,
        queries: Kernel::ATTENTION_BACKWARD_QUERIES_64,
    },
    Variant {
        columns: 128,
        tile: 32,
        others: 32,
        forward: Kernel::ATTENTION_FORWARD_128,
        keys: Kernel::ATTENTION_BACKWARD_KEYS_128,
        queries: Kernel::ATTENTION_BACKWARD_QUERIES_128,
    },
    Variant {
        columns: 256,
        tile: 16,
        others: 16,
        forward: Kernel::ATTENTION_FORWARD_256,
        keys: Kernel::ATTENTION_BACKWARD_KEYS_256,
        queries: Kernel::ATTENTION_BACKWARD_QUERIES_256,
    },
];

impl Variant {
    /// The narrowest variant for a spec.
    fn of(spec: &Attention) -> &'static Self {
        let wide_enough = |variant: &&Self| variant.columns >= spec.head_dim;
        let found = VARIANTS.iter().find(wide_enough);
        found.expect("the shape was checked")
    }

    /// Blocks for the tiles of all items and for `heads` heads. Shared memory holds `tiles` of the
    /// block's tiles, two of the other side, and a score for each pair of their rows.
    fn grid(&self, segments: &PackedSegments, heads: usize, tiles: usize) -> Grid {
        let rows = (tiles * self.tile + 2 * self.others) * (self.columns + 4);
        let scores = self.tile * (self.others + 4);
        let blocks = segments.count * (ITEM_ROWS / self.tile);
        Grid {
            blocks: [blocks as u32, heads as u32, 1],
            threads: THREADS,
            shared_bytes: (rows + scores) * size_of::<f32>(),
        }
    }
}

/// Adds what all kernels read to the arguments of a call.
fn with_layer<'a>(
    call: Call<'a>,
    qkv: Slice<f32>,
    segments: &PackedSegments,
    spec: &Attention,
) -> Call<'a> {
    let sizes = [spec.query_heads, spec.kv_heads, spec.head_dim];
    let call = call.read(qkv).read(segments.items.slice());
    let call = sizes
        .into_iter()
        .fold(call.with(segments.tokens), |call, size| {
            call.with(size as u32)
        });
    call.with(window(spec)).with(spec.scale)
}

fn check(qkv: Slice<f32>, segments: &PackedSegments, spec: &Attention) -> Result<()> {
    check_spec(spec)?;
    check_aligned("rows", qkv)?;
    qkv.check("the rows of attention", segments.tokens * spec.columns())
}

/// Attention within each segment: `qkv` is `[tokens, columns]`.
///
/// # Errors
/// A shape without a kernel, arrays whose lengths do not fit, and errors of the device.
pub fn forward(qkv: Slice<f32>, segments: &PackedSegments, spec: Attention) -> Result<Attended> {
    check(qkv, segments, &spec)?;
    let gpu = qkv.gpu();
    let mut out = gpu.array(segments.tokens * spec.outputs())?;
    let mut sums = gpu.array(segments.tokens * spec.query_heads)?;
    let variant = Variant::of(&spec);
    let call = with_layer(Call::new(gpu, variant.forward), qkv, segments, &spec)
        .write(&mut out.slice_mut())
        .write(&mut sums.slice_mut());
    // SAFETY: the lengths were checked or made for the shape, and items lie within the tokens.
    unsafe { call.run(variant.grid(segments, spec.query_heads, 1))? };
    Ok(Attended { out, sums })
}

/// Gradient of `qkv`, `[tokens, columns]`, for that of the result, `grad`, given the result and the
/// sums of [`forward`].
///
/// # Errors
/// As [`forward`].
pub fn backward(
    qkv: Slice<f32>,
    [out, sums]: [Slice<f32>; 2],
    grad: Slice<f32>,
    segments: &PackedSegments,
    spec: Attention,
) -> Result<Array<f32>> {
    check(qkv, segments, &spec)?;
    let outputs = segments.tokens * spec.outputs();
    let heads = segments.tokens * spec.query_heads;
    grad.check("the gradient of attention", outputs)?;
    check_aligned("the gradient", grad)?;
    sums.check("the sums of attention", heads)?;
    let along = along(out, grad, segments, &spec)?;
    let mut dqkv = qkv.gpu().array(qkv.len())?;
    let variant = Variant::of(&spec);
    let mut call = |kernel| {
        with_layer(Call::new(qkv.gpu(), kernel), qkv, segments, &spec)
            .read(grad)
            .read(sums)
            .read(along.slice())
            .write(&mut dqkv.slice_mut())
    };
    let keys = call(variant.keys).with(segments.count as u32);
    let queries = call(variant.queries);
    // SAFETY: the lengths were checked or made for the shape, and items lie within the tokens.
    unsafe {
        keys.run(variant.grid(segments, spec.kv_heads, 2))?;
        queries.run(variant.grid(segments, spec.query_heads, 2))?;
    }
    Ok(dqkv)
}

/// Products of the rows of `grad` with those of the result, `[query_heads, tokens]`.
fn along(
    out: Slice<f32>,
    grad: Slice<f32>,
    segments: &PackedSegments,
    spec: &Attention,
) -> Result<Array<f32>> {
    out.check("the result of attention", grad.len())?;
    let items = segments.tokens * spec.query_heads;
    let mut along = grad.gpu().array(items)?;
    let call = Call::new(grad.gpu(), Kernel::ATTENTION_ALONG)
        .read(grad)
        .read(out)
        .write(&mut along.slice_mut())
        .with(segments.tokens)
        .with(spec.query_heads as u32)
        .with(spec.head_dim as u32);
    // SAFETY: both arrays have `head_dim` elements for each of the sums.
    unsafe { call.run(Grid::over(items as u64 * 16))? };
    Ok(along)
}
