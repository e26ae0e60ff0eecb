//! Attention of new tokens over a block-paged cache, in which the keys and values of a layer are
//! `[block][key head][16 tokens][head_dim]` each.
//!
//! A token's result has the same bits whatever the other sequences of the batch, and whichever
//! tokens of its own sequence are new together with it.

use super::{blocks_of, check, check_aligned, window};
use crate::attention::{Attention, BLOCK_TOKENS};
use crate::device::array::{Array, Gpu, Number, Slice};
use crate::device::attention::step::{PagedStep, SPLIT, Tiles};
use crate::device::call::Call;
use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;
use crate::device::launcher::Grid;

/// Elements of shared memory for a chunk of 64 columns of a split's keys or values.
const CHUNK: usize = SPLIT * (64 + 4);

/// Element types of a cache: `f32`, or `u16` for the bits of bfloat16. The kernels compute in
/// single precision, with queries rounded to the cache's type.
pub trait Cached: Number {
    /// Kernels that write new keys and values, and attend over 4, 8 and 16 rows at a time.
    #[doc(hidden)]
    const KERNELS: (Kernel, [Kernel; 3]);
}

impl Cached for f32 {
    const KERNELS: (Kernel, [Kernel; 3]) = (
        Kernel::ATTENTION_PAGED_WRITE,
        [
            Kernel::ATTENTION_PAGED_4,
            Kernel::ATTENTION_PAGED_8,
            Kernel::ATTENTION_PAGED_16,
        ],
    );
}

impl Cached for u16 {
    const KERNELS: (Kernel, [Kernel; 3]) = (
        Kernel::ATTENTION_PAGED_WRITE_BFLOAT16,
        [
            Kernel::ATTENTION_PAGED_BFLOAT16_4,
            Kernel::ATTENTION_PAGED_BFLOAT16_8,
            Kernel::ATTENTION_PAGED_BFLOAT16_16,
        ],
    );
}

/// Keys and values of one layer, in blocks.
pub struct PagedCache<T> {
    kv_heads: usize,
    head_dim: usize,
    blocks: usize,
    keys: Array<T>,
    values: Array<T>,
}

impl<T: Cached> PagedCache<T> {
    /// A cache with room for `blocks` blocks, with undefined contents.
    ///
    /// # Errors
    /// A layer without a kernel, and too little memory.
    pub fn new(gpu: &Gpu, spec: &Attention, blocks: usize) -> Result<Self> {
        check(spec)?;
        let elements = blocks.saturating_mul(block_elements(spec.kv_heads, spec.head_dim));
        Ok(Self {
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            blocks,
            keys: gpu.array(elements)?,
            values: gpu.array(elements)?,
        })
    }

    /// The device that holds the cache.
    pub fn gpu(&self) -> &Gpu {
        self.keys.gpu()
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        (self.keys.len() + self.values.len()) * size_of::<T>()
    }

    /// Bytes of one block of a layer: keys and values.
    pub fn block_bytes(spec: &Attention) -> usize {
        2 * block_elements(spec.kv_heads, spec.head_dim) * size_of::<T>()
    }

    /// Copies blocks.
    ///
    /// # Errors
    /// Blocks that the cache does not have, and errors of the device.
    pub fn copy(&mut self, copies: &BlockCopies) -> Result<()> {
        self.check_blocks(copies.blocks)?;
        let bytes = block_elements(self.kv_heads, self.head_dim) * size_of::<T>();
        let quads = bytes / size_of::<[u32; 4]>(); // exact: a block has 16 tokens
        for (pairs, count) in &copies.groups {
            let call = Call::new(pairs.gpu(), Kernel::ATTENTION_PAGED_COPY)
                .write(&mut self.keys.slice_mut())
                .write(&mut self.values.slice_mut())
                .read(pairs.slice())
                .with(*count)
                .with(quads);
            // SAFETY: the blocks were checked, and there are two of them for each copy.
            unsafe { call.run(Grid::over(*count as u64 * quads as u64))? };
        }
        Ok(())
    }

    /// Stores the new tokens' keys and values, and returns their attention over the cache:
    /// `qkv` is `[new tokens, columns]`, the result `[new tokens, query_heads · head_dim]`.
    ///
    /// # Errors
    /// A layer of other heads than the cache's or the step's, blocks that the cache does not have,
    /// arrays whose lengths do not fit, and errors of the device.
    pub fn attend(
        &mut self,
        qkv: Slice<f32>,
        step: &PagedStep,
        spec: Attention,
    ) -> Result<Array<f32>> {
        self.check(qkv, step, &spec)?;
        self.write(qkv, step, &spec)?;
        let mut out = qkv.gpu().array(step.tokens() * spec.outputs())?;
        for tiles in &step.tiles {
            self.attend_tiles(qkv, step, tiles, &spec, &mut out)?;
        }
        Ok(out)
    }

    fn check(&self, qkv: Slice<f32>, step: &PagedStep, spec: &Attention) -> Result<()> {
        check(spec)?;
        check_aligned("rows", qkv)?;
        qkv.check(
            "the rows of cached attention",
            step.tokens() * spec.columns(),
        )?;
        self.check_blocks(step.blocks)?;
        let found = [spec.kv_heads, spec.head_dim, spec.group()];
        let expected = [self.kv_heads, self.head_dim, step.group];
        match found == expected {
            true => Ok(()),
            false => Err(KernelError::Shape {
                message: format!(
                    "cached attention: key heads, their columns and query heads of each are \
                     {found:?} where the cache and the step have {expected:?}"
                ),
            }),
        }
    }

    fn check_blocks(&self, least: usize) -> Result<()> {
        match least <= self.blocks {
            true => Ok(()),
            false => Err(KernelError::Shape {
                message: format!("cache block {} of {}", least - 1, self.blocks),
            }),
        }
    }

    fn write(&mut self, qkv: Slice<f32>, step: &PagedStep, spec: &Attention) -> Result<()> {
        let call = Call::new(qkv.gpu(), T::KERNELS.0)
            .read(qkv)
            .write(&mut self.keys.slice_mut())
            .write(&mut self.values.slice_mut())
            .read(step.slots.slice())
            .with(step.tokens());
        let elements = step.tokens() * spec.kv_heads * spec.head_dim;
        // SAFETY: the lengths were checked, and the slots lie within the cache's blocks.
        unsafe { with_heads(call, spec).run(Grid::over(elements as u64 / 4)) }
    }

    fn attend_tiles(
        &self,
        qkv: Slice<f32>,
        step: &PagedStep,
        tiles: &Tiles,
        spec: &Attention,
        out: &mut Array<f32>,
    ) -> Result<()> {
        let rows = tiles.rows();
        let parts = tiles.parts * spec.kv_heads * rows;
        let mut mixed = qkv.gpu().array::<f32>(parts * spec.head_dim)?;
        let mut softmaxes = qkv.gpu().array::<f32>(parts * 2)?;
        let call = Call::new(qkv.gpu(), T::KERNELS.1[tiles.variant])
            .read(qkv)
            .read(self.keys.slice())
            .read(self.values.slice())
            .read(tiles.items.slice())
            .read(step.sequences.slice())
            .read(step.table.slice());
        let call = with_heads(call, spec)
            .with(window(spec))
            .with(spec.scale)
            .write(&mut out.slice_mut())
            .write(&mut mixed.slice_mut())
            .write(&mut softmaxes.slice_mut());
        let shared = CHUNK + rows * (SPLIT + 2 * spec.head_dim + 4) + SPLIT / BLOCK_TOKENS;
        let grid = |items: usize, shared_bytes| Grid {
            blocks: [blocks_of(items), spec.kv_heads as u32, 1],
            threads: SPLIT as u32,
            shared_bytes,
        };
        // SAFETY: the lengths were checked; items and tables were made from checked sequences, and
        // items with one split are the first `parts`.
        unsafe { call.run(grid(tiles.count, shared * size_of::<f32>()))? };
        let call = Call::new(qkv.gpu(), Kernel::ATTENTION_PAGED_JOIN)
            .read(mixed.slice())
            .read(softmaxes.slice())
            .read(tiles.joined.slice())
            .read(step.sequences.slice())
            .with(rows as u32);
        let call = with_heads(call, spec)
            .with(window(spec))
            .write(&mut out.slice_mut());
        // SAFETY: as above; a tile's parts are items from its first one on.
        unsafe { call.run(grid(tiles.joined.len() / 3, 0)) }
    }
}

/// Elements of the keys, or the values, of a block.
fn block_elements(kv_heads: usize, head_dim: usize) -> usize {
    kv_heads * BLOCK_TOKENS * head_dim
}

/// Adds the numbers of heads to the arguments of a call.
fn with_heads<'a>(call: Call<'a>, spec: &Attention) -> Call<'a> {
    let sizes = [spec.query_heads, spec.kv_heads, spec.head_dim];
    sizes
        .into_iter()
        .fold(call, |call, size| call.with(size as u32))
}

/// Copies between blocks of a cache, made for all layers.
pub struct BlockCopies {
    /// Above every block.
    blocks: usize,
    /// Pairs of a source and a destination, and their number. No destination of a group is one of
    /// its other blocks.
    groups: Vec<(Array<u32>, usize)>,
}

impl BlockCopies {
    /// Copies of (from, to), as if one was made after the other.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn new(gpu: &Gpu, copies: &[(u32, u32)]) -> Result<Self> {
        let mut groups: Vec<Vec<(u32, u32)>> = Vec::new();
        let mut touched = std::collections::HashSet::new();
        let mut written = std::collections::HashSet::new();
        for &(from, to) in copies.iter().filter(|(from, to)| from != to) {
            if groups.is_empty() || written.contains(&from) || touched.contains(&to) {
                touched.clear();
                written.clear();
                groups.push(Vec::new());
            }
            touched.extend([from, to]);
            written.insert(to);
            groups.last_mut().expect("a group").push((from, to));
        }
        let upload = |group: &Vec<(u32, u32)>| {
            let pairs: Vec<u32> = group.iter().flat_map(|&(from, to)| [from, to]).collect();
            Ok((gpu.upload(&pairs)?, group.len()))
        };
        let blocks = copies.iter().map(|&(from, to)| from.max(to) as usize + 1);
        Ok(Self {
            blocks: blocks.max().unwrap_or(0),
            groups: groups.iter().map(upload).collect::<Result<_>>()?,
        })
    }
}
