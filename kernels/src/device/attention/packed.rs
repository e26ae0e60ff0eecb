//! Attention within the segments of packed rows, after FlashAttention-2 (Dao 2023): in single
//! precision, or on tensor cores if the rows are the bits of bfloat16.
//!
//! Scores are made a tile at a time and never stored. A segment's results depend on its own rows
//! alone, to the bit.
//!
//! Rows in bfloat16 have heads of a multiple of 8 columns up to 128. Rounded to bfloat16, to
//! nearest even, are beside them:
//! - forward: the weights `exp(score − largest)` before they are multiplied with values. Keys are
//!   read in tiles of 64, which begin at multiples of 64, and the largest score is that of the
//!   tiles read so far;
//! - backward: the weights `exp(score − log sum)` before they are multiplied with the gradient, and
//!   the gradients of the scaled scores before they are multiplied with keys and queries.
//!
//! All else is in single precision: accumulators, the sums of weights (before they are rounded),
//! scaling and results.

use std::ops::Range;

use super::variants::{Part, Variant};
use super::{PackedNumber, blocks_of, check as check_spec, check_aligned, window};
use crate::attention::{Attention, Segments};
use crate::device::array::{Array, Gpu, Slice};
use crate::device::call::Call;
use crate::device::error::{KernelError, Result};
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

impl Part {
    /// Blocks for the tiles of all items, of `tile` rows, and for `heads` heads.
    fn grid(&self, segments: &PackedSegments, tile: usize, heads: usize) -> Grid {
        let blocks = segments.count * (ITEM_ROWS / tile);
        Grid {
            blocks: [blocks_of(blocks), heads as u32, 1],
            threads: THREADS,
            shared_bytes: self.shared_bytes,
        }
    }
}

/// Adds what all kernels read to the arguments of a call.
fn with_layer<'a, T: PackedNumber>(
    call: Call<'a>,
    qkv: Slice<T>,
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

fn check<T: PackedNumber>(
    qkv: Slice<T>,
    segments: &PackedSegments,
    spec: &Attention,
) -> Result<&'static Variant> {
    check_spec(spec)?;
    check_aligned("rows", qkv)?;
    qkv.check("the rows of attention", segments.tokens * spec.columns())?;
    T::KERNELS.variant(spec)
}

/// Attention within each segment: `qkv` is `[tokens, columns]`.
///
/// # Errors
/// A shape without a kernel, arrays whose lengths do not fit, and errors of the device.
pub fn forward<T: PackedNumber>(
    qkv: Slice<T>,
    segments: &PackedSegments,
    spec: Attention,
) -> Result<Attended> {
    let variant = check(qkv, segments, &spec)?;
    let gpu = qkv.gpu();
    let mut out = gpu.array(segments.tokens * spec.outputs())?;
    let mut sums = gpu.array(segments.tokens * spec.query_heads)?;
    let part = &variant.forward;
    let call = with_layer(Call::new(gpu, part.kernel), qkv, segments, &spec)
        .write(&mut out.slice_mut())
        .write(&mut sums.slice_mut());
    // SAFETY: the lengths were checked or made for the shape, and items lie within the tokens.
    unsafe { call.run(part.grid(segments, variant.tile, spec.query_heads))? };
    Ok(Attended { out, sums })
}

/// Gradient of `qkv`, `[tokens, columns]`, for that of the result, `grad`, given the result and the
/// sums of [`forward`].
///
/// # Errors
/// A shape without a kernel, arrays whose lengths do not fit, and errors of the device.
pub fn backward<T: PackedNumber>(
    qkv: Slice<T>,
    [out, sums]: [Slice<f32>; 2],
    grad: Slice<T>,
    segments: &PackedSegments,
    spec: Attention,
) -> Result<Array<f32>> {
    let variant = check(qkv, segments, &spec)?;
    let outputs = segments.tokens * spec.outputs();
    let heads = segments.tokens * spec.query_heads;
    grad.check("the gradient of attention", outputs)?;
    check_aligned("the gradient", grad)?;
    sums.check("the sums of attention", heads)?;
    let along = along(out, grad, segments, &spec)?;
    let mut dqkv = qkv.gpu().array(qkv.len())?;
    let mut call = |part: &Part| {
        with_layer(Call::new(qkv.gpu(), part.kernel), qkv, segments, &spec)
            .read(grad)
            .read(sums)
            .read(along.slice())
            .write(&mut dqkv.slice_mut())
    };
    let keys = call(&variant.keys).with(segments.count as u32);
    let queries = call(&variant.queries);
    // SAFETY: the lengths were checked or made for the shape, and items lie within the tokens.
    unsafe {
        keys.run(variant.keys.grid(segments, variant.tile, spec.kv_heads))?;
        queries.run(
            variant
                .queries
                .grid(segments, variant.tile, spec.query_heads),
        )?;
    }
    Ok(dqkv)
}

/// Products of the rows of `grad` with those of the result, `[query_heads, tokens]`.
fn along<T: PackedNumber>(
    out: Slice<f32>,
    grad: Slice<T>,
    segments: &PackedSegments,
    spec: &Attention,
) -> Result<Array<f32>> {
    out.check("the result of attention", grad.len())?;
    let items = segments.tokens * spec.query_heads;
    let mut along = grad.gpu().array(items)?;
    let call = Call::new(grad.gpu(), T::KERNELS.along)
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
