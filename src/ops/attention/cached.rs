//! Attention of new tokens against a block-paged cache.
//!
//! The generator decides which blocks a sequence holds and how many tokens are in them; the cache
//! stores the keys and values of every layer and computes attention. On the CPU a block has the
//! layout of the training kernel; on other devices keys and values are rows of tensors and
//! attention is composed of candle's operations.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use kernels::attention::{Attention, BLOCK_TOKENS, NewTokens};
use kernels::device::attention::PagedStep;
use kernels::device::attention::paged::{BlockCopies, PagedCache};
use kernels::device::{Array, Slice};
use kernels::host::attention::KeyValueBlocks;

use super::composed::attend_dense;
use crate::ops::backend::Backend;
use crate::ops::operation::profiled;
use crate::ops::place::{Gpu, Host, Place, lift};

/// Keys and values of all layers, in blocks.
pub struct Cache {
    layers: Vec<CacheStore>,
    blocks: usize,
}

/// Keys and values of one layer.
pub enum CacheStore {
    /// Blocks of the CPU.
    Blocks(KeyValueBlocks),
    /// Blocks of a GPU, and the step whose tokens all layers read.
    Paged {
        /// Keys and values.
        blocks: PagedCache<f32>,
        /// The new tokens, from [`Cache::begin`] on.
        step: Option<Arc<PagedStep>>,
    },
    /// Rows for candle's operations: `[block · BLOCK_TOKENS, kv_heads · head_dim]`.
    Rows {
        /// Keys.
        keys: Tensor,
        /// Values.
        values: Tensor,
    },
}

impl Cache {
    /// A cache with room for `blocks` blocks in each of `layers` layers.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(spec: Attention, layers: usize, blocks: usize, backend: &Backend) -> Result<Self> {
        let store = || match backend {
            Backend::Host(_) => Ok(CacheStore::Blocks(KeyValueBlocks::new(spec, blocks))),
            Backend::Gpu(gpu, _) => Ok(CacheStore::Paged {
                blocks: lift(PagedCache::new(gpu, &spec, blocks))?,
                step: None,
            }),
            Backend::Composed(device) => CacheStore::rows(spec, blocks, device),
        };
        Ok(Self {
            layers: (0..layers).map(|_| store()).collect::<Result<_>>()?,
            blocks,
        })
    }

    /// Number of blocks in each layer.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of one block in all layers together; on the CPU values are padded to whole panels.
    pub fn block_bytes(spec: Attention, layers: usize, backend: &Backend) -> usize {
        let columns = 2 * spec.kv_heads * spec.head_dim;
        let bytes = match backend {
            Backend::Host(_) => KeyValueBlocks::block_bytes(spec),
            Backend::Gpu(..) => return Self::gpu_block_bytes(spec, layers),
            Backend::Composed(_) => BLOCK_TOKENS * columns * size_of::<f32>(),
        };
        layers * bytes
    }

    /// [`Self::block_bytes`] on a GPU.
    pub fn gpu_block_bytes(spec: Attention, layers: usize) -> usize {
        layers * PagedCache::<f32>::block_bytes(&spec)
    }

    /// Copies whole blocks, in every layer.
    ///
    /// # Errors
    /// If a block does not exist.
    pub fn copy(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        let largest = copies.iter().map(|&(from, to)| from.max(to) as usize).max();
        if let Some(largest) = largest.filter(|&block| block >= self.blocks) {
            bail!("cache: block {largest} of {}", self.blocks);
        }
        let on_device = match &self.layers[..] {
            [CacheStore::Paged { blocks, .. }, ..] if !copies.is_empty() => {
                Some(lift(BlockCopies::new(blocks.gpu(), copies))?)
            }
            _ => None,
        };
        for layer in &mut self.layers {
            match (layer, &on_device) {
                (CacheStore::Paged { blocks, .. }, Some(copies)) => lift(blocks.copy(copies))?,
                (layer, _) => copies
                    .iter()
                    .try_for_each(|&(from, to)| layer.copy(from as usize, to as usize))?,
            }
        }
        Ok(())
    }

    /// Prepares a pass of these new tokens through layers with `group` query heads for each key
    /// head.
    ///
    /// # Errors
    /// If a sequence has too few blocks, or the device has no room.
    pub fn begin(&mut self, news: &[NewTokens], group: usize) -> Result<()> {
        let mut shared = None;
        for layer in &mut self.layers {
            let CacheStore::Paged { blocks, step } = layer else {
                continue;
            };
            if shared.is_none() {
                shared = Some(Arc::new(lift(PagedStep::new(blocks.gpu(), news, group))?));
            }
            step.clone_from(&shared);
        }
        Ok(())
    }

    /// Stores the new keys and values of `qkv` (`[new tokens, columns]`) and returns attention over
    /// the cache, `[new tokens, outputs]`. The window may differ between layers; the heads may not.
    ///
    /// # Errors
    /// If shapes disagree, a sequence has too few blocks, or the cache is on another device.
    pub fn attend<P: CachePlace>(
        &mut self,
        layer: usize,
        qkv: P::View<'_>,
        news: &[NewTokens],
        spec: Attention,
    ) -> Result<P::Rows> {
        self.check([P::len(qkv) / spec.columns(), spec.columns()], news, spec)?;
        let layer = &mut self.layers[layer];
        profiled::<P>("cached attention", || {
            P::attend_cached(layer, qkv, news, spec)
        })
    }

    /// [`Self::attend`] as a composition of candle's operations.
    ///
    /// # Errors
    /// As [`Self::attend`].
    pub fn attend_tensor(
        &mut self,
        layer: usize,
        qkv: &Tensor,
        news: &[NewTokens],
        spec: Attention,
    ) -> Result<Tensor> {
        let (rows, columns) = qkv.dims2()?;
        self.check([rows, columns], news, spec)?;
        match &mut self.layers[layer] {
            CacheStore::Rows { keys, values } => attend_rows(keys, values, qkv, news, spec),
            _ => bail!("cache: a tensor given to a cache of rows"),
        }
    }

    fn check(&self, found: [usize; 2], news: &[NewTokens], spec: Attention) -> Result<()> {
        let rows: usize = news.iter().map(|n| n.count).sum();
        if found != [rows, spec.columns()] {
            bail!(
                "cached attention: input {found:?} where [{rows}, {}] is needed",
                spec.columns()
            );
        }
        for new in news {
            let last = new.blocks.iter().max().map_or(0, |&b| b as usize);
            if new.blocks.len() * BLOCK_TOKENS < new.past + new.count || last >= self.blocks {
                bail!(
                    "cache: {} tokens in {} blocks, largest {last} of {}",
                    new.past + new.count,
                    new.blocks.len(),
                    self.blocks
                );
            }
        }
        Ok(())
    }
}

impl CacheStore {
    fn rows(spec: Attention, blocks: usize, device: &Device) -> Result<Self> {
        let shape = (blocks * BLOCK_TOKENS, spec.kv_heads * spec.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, device);
        Ok(Self::Rows {
            keys: zeros()?,
            values: zeros()?,
        })
    }

    fn copy(&mut self, from: usize, to: usize) -> Result<()> {
        match self {
            Self::Blocks(blocks) => {
                blocks.copy(from, to);
                Ok(())
            }
            Self::Paged { .. } => bail!("cache: blocks of a GPU are copied together"),
            Self::Rows { keys, values } => [keys, values].into_iter().try_for_each(|t| {
                let block = t.narrow(0, from * BLOCK_TOKENS, BLOCK_TOKENS)?.copy()?;
                t.slice_set(&block, 0, to * BLOCK_TOKENS)
            }),
        }
    }
}

/// A place with a cache of its own.
pub trait CachePlace: Place {
    /// Stores new keys and values in a layer's cache and attends to it, see [`Cache::attend`].
    ///
    /// # Errors
    /// If the cache is in another place.
    fn attend_cached(
        cache: &mut CacheStore,
        qkv: Self::View<'_>,
        news: &[NewTokens],
        spec: Attention,
    ) -> Result<Self::Rows>;
}

impl CachePlace for Host {
    fn attend_cached(
        cache: &mut CacheStore,
        qkv: &[f32],
        news: &[NewTokens],
        spec: Attention,
    ) -> Result<Vec<f32>> {
        match cache {
            CacheStore::Blocks(blocks) => Ok(blocks.attend(qkv, news, spec)),
            _ => bail!("cache: rows of the CPU given to a cache in another place"),
        }
    }
}

impl CachePlace for Gpu {
    fn attend_cached(
        cache: &mut CacheStore,
        qkv: Slice<'_, f32>,
        _news: &[NewTokens],
        spec: Attention,
    ) -> Result<Array<f32>> {
        match cache {
            CacheStore::Paged {
                blocks,
                step: Some(step),
            } => lift(blocks.attend(qkv, step, spec)),
            _ => bail!("cache: no step of a GPU's cache has begun"),
        }
    }
}

/// Attention over a cache of rows, sequence by sequence, as a composition of candle operations.
fn attend_rows(
    keys: &Tensor,
    values: &Tensor,
    qkv: &Tensor,
    news: &[NewTokens],
    spec: Attention,
) -> Result<Tensor> {
    let (mut at, mut parts) = (0, Vec::with_capacity(news.len()));
    for new in news {
        let part = qkv.narrow(0, at, new.count)?;
        at += new.count;
        store_rows(new, keys, &part, spec.key_column(0))?;
        store_rows(new, values, &part, spec.value_column(0))?;
        let total = new.past + new.count;
        let slots = Tensor::from_iter((0..total).map(|p| slot(new, p) as u32), qkv.device())?;
        let heads = |t: &Tensor| {
            let shape = (total, spec.kv_heads, spec.head_dim);
            t.index_select(&slots, 0)?.reshape(shape)
        };
        let shape = (new.count, spec.query_heads, spec.head_dim);
        let queries = part.narrow(1, 0, spec.outputs())?.reshape(shape)?;
        let (keys, values) = (heads(keys)?, heads(values)?);
        parts.push(attend_dense(&queries, &keys, &values, new.past, spec)?);
    }
    Tensor::cat(&parts, 0)
}

/// Row of a cache of rows that belongs to the token of a sequence at `position`.
fn slot(new: &NewTokens, position: usize) -> usize {
    new.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
}

/// Stores keys or values of a sequence's new tokens: columns of `rows` from `column` on, as many as
/// `cache` has.
fn store_rows(new: &NewTokens, cache: &Tensor, rows: &Tensor, column: usize) -> Result<()> {
    let columns = rows.narrow(1, column, cache.dim(1)?)?.contiguous()?;
    (0..new.count)
        .try_for_each(|i| cache.slice_set(&columns.narrow(0, i, 1)?, 0, slot(new, new.past + i)))
}

#[cfg(test)]
mod tests;
