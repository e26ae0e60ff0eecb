//! Attention of new tokens against a block-paged cache.
//!
//! The generator decides which blocks a sequence holds and how many tokens are in them; the cache
//! stores the keys and values of every layer and computes attention. On the CPU a block has the
//! layout of the training kernel; on other devices keys and values are rows of tensors and
//! attention is composed of candle's operations.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::composed::attend_dense;
use super::kernel::{Blocks, Queries, attend};
use super::{Attention, storage};
use crate::ops::backend::Backend;
use crate::ops::operation::profiled;
use crate::ops::pool;
use crate::ops::product::Destination;
use crate::ops::product::lanes::{LANES, Line};

/// Consecutive new tokens of one task: the rows of the largest tile.
const RUN: usize = 8;

/// Tokens in one cache block.
pub const BLOCK_TOKENS: usize = LANES;

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

/// Keys and values of all layers, in blocks.
pub struct Cache {
    layers: Vec<CacheStore>,
    spec: Attention,
    blocks: usize,
}

enum CacheStore {
    /// `[block][kv head][lines of a block]`
    Blocks(Vec<Line>),
    /// `[block · BLOCK_TOKENS, kv_heads · head_dim]`
    Rows { keys: Tensor, values: Tensor },
}

impl Cache {
    /// A cache with room for `blocks` blocks in each of `layers` layers.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(spec: Attention, layers: usize, blocks: usize, backend: &Backend) -> Result<Self> {
        let store = || match backend {
            Backend::Host(_) => Ok(CacheStore::blocks(spec, blocks)),
            Backend::Composed(device) => CacheStore::rows(spec, blocks, device),
        };
        Ok(Self {
            layers: (0..layers).map(|_| store()).collect::<Result<_>>()?,
            spec,
            blocks,
        })
    }

    /// Number of blocks in each layer.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of one block in all layers together; on the CPU values are padded to whole panels.
    pub fn block_bytes(spec: Attention, layers: usize, backend: &Backend) -> usize {
        let elements = match backend {
            Backend::Host(_) => spec.block_lines() * LANES,
            Backend::Composed(_) => 2 * BLOCK_TOKENS * spec.head_dim,
        };
        layers * spec.kv_heads * elements * size_of::<f32>()
    }

    /// Copies whole blocks, in every layer.
    ///
    /// # Errors
    /// If a block does not exist.
    pub fn copy(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        for &(from, to) in copies {
            if from.max(to) as usize >= self.blocks {
                bail!("cache: block {} of {}", from.max(to), self.blocks);
            }
            for layer in &mut self.layers {
                layer.copy(from as usize, to as usize, self.spec)?;
            }
        }
        Ok(())
    }

    /// Stores the new keys and values of `qkv` (`[new tokens, columns]`) and returns attention over
    /// the cache, `[new tokens, outputs]`. The window may differ between layers; the heads may not.
    ///
    /// # Errors
    /// If shapes disagree, a sequence has too few blocks, or the cache is on another device.
    pub fn attend(
        &mut self,
        layer: usize,
        qkv: &[f32],
        news: &[NewTokens],
        spec: Attention,
    ) -> Result<Vec<f32>> {
        self.check([qkv.len() / spec.columns(), spec.columns()], news, spec)?;
        match &mut self.layers[layer] {
            CacheStore::Blocks(data) => profiled("cached attention", || {
                Ok(attend_blocks(data, qkv, news, spec))
            }),
            CacheStore::Rows { .. } => {
                bail!("cache: plain rows given to a cache of another device")
            }
        }
    }

    /// [`Self::attend`] for tensors, on any device.
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
            CacheStore::Blocks(data) => {
                let attend = |qkv: &[f32]| attend_blocks(data, qkv, news, spec);
                let out = storage::read(&qkv.contiguous()?, attend)?;
                Tensor::from_vec(out, (rows, spec.outputs()), qkv.device())
            }
            CacheStore::Rows { keys, values } => attend_rows(keys, values, qkv, news, spec),
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
    fn blocks(spec: Attention, blocks: usize) -> Self {
        Self::Blocks(vec![
            Line::default();
            blocks * spec.kv_heads * spec.block_lines()
        ])
    }

    fn rows(spec: Attention, blocks: usize, device: &Device) -> Result<Self> {
        let shape = (blocks * BLOCK_TOKENS, spec.kv_heads * spec.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, device);
        Ok(Self::Rows {
            keys: zeros()?,
            values: zeros()?,
        })
    }

    fn copy(&mut self, from: usize, to: usize, spec: Attention) -> Result<()> {
        match self {
            Self::Blocks(data) => {
                let len = spec.kv_heads * spec.block_lines();
                data.copy_within(from * len..(from + 1) * len, to * len);
                Ok(())
            }
            Self::Rows { keys, values } => [keys, values].into_iter().try_for_each(|t| {
                let block = t.narrow(0, from * BLOCK_TOKENS, BLOCK_TOKENS)?.copy()?;
                t.slice_set(&block, 0, to * BLOCK_TOKENS)
            }),
        }
    }
}

fn attend_blocks(data: &mut [Line], qkv: &[f32], news: &[NewTokens], spec: Attention) -> Vec<f32> {
    let outputs = spec.outputs();
    spec.check_heads();
    write_tokens(data, qkv, news, spec);
    let rows: usize = news.iter().map(|n| n.count).sum();
    let write = |out: &mut [MaybeUninit<f32>]| {
        let (mut qkv, mut out, mut runs) = (qkv, out, Vec::new());
        for (new, first) in news.iter().flat_map(firsts_of_runs) {
            let count = RUN.min(new.count - first);
            let (rows, qkv_behind) = qkv.split_at(count * spec.columns());
            let (to, out_behind) = out.split_at_mut(count * outputs);
            let position = new.past + first;
            runs.push((
                TokenRun {
                    rows,
                    count,
                    position,
                    blocks: new.blocks,
                    spec: &spec,
                },
                to,
            ));
            (qkv, out) = (qkv_behind, out_behind);
        }
        pool::for_each(runs, |(run, out)| run.attend(data, out));
    };
    // SAFETY: the runs cover all rows, and each row's heads all of its columns.
    unsafe { storage::written(rows * outputs, write) }
}

/// First new token of each run of a sequence.
fn firsts_of_runs<'n, 'a>(
    new: &'n NewTokens<'a>,
) -> impl Iterator<Item = (&'n NewTokens<'a>, usize)> {
    (0..new.count).step_by(RUN).map(move |first| (new, first))
}

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Consecutive new tokens of a sequence, whose keys and values are already in the cache.
struct TokenRun<'a> {
    /// `[count, columns]`
    rows: &'a [f32],
    count: usize,
    /// Position of the first token.
    position: usize,
    /// The sequence's blocks.
    blocks: &'a [u32],
    spec: &'a Attention,
}

impl TokenRun<'_> {
    /// Computes all heads. The rows of a tile share keys and values: they are the tokens of one
    /// head if there are more tokens than heads in a group, otherwise the heads of one token.
    fn attend(&self, data: &[Line], out: &mut [MaybeUninit<f32>]) {
        let (spec, out) = (self.spec, Destination::new(out, self.spec.outputs()));
        match self.count > spec.group() {
            true => (0..spec.query_heads).for_each(|head| self.attend_tokens(data, head, out)),
            false => (0..self.count).for_each(|token| self.attend_heads(data, token, out)),
        }
    }

    /// Computes all tokens of one head.
    fn attend_tokens(&self, data: &[Line], head: usize, out: Destination) {
        let (spec, column) = (self.spec, head * self.spec.head_dim);
        let queries = Queries {
            spec,
            data: &self.rows[column..],
            stride: spec.columns(),
            position: self.position,
            step: 1,
            count: self.count,
            blocks: self.blocks(data, head / spec.group()),
        };
        // SAFETY: no other task writes the run's rows of `out`.
        SCORES.with_borrow_mut(|scores| unsafe { attend(&queries, scores, out.right(column)) });
    }

    /// Computes all heads of one token.
    fn attend_heads(&self, data: &[Line], token: usize, out: Destination) {
        let (spec, width) = (self.spec, self.spec.group() * self.spec.head_dim);
        for head in 0..spec.kv_heads {
            let queries = Queries {
                spec,
                data: &self.rows[token * spec.columns() + head * width..],
                stride: spec.head_dim,
                position: self.position + token,
                step: 0,
                count: spec.group(),
                blocks: self.blocks(data, head),
            };
            let out = out.below(token).right(head * width).of_width(spec.head_dim);
            // SAFETY: no other task writes the run's rows of `out`.
            SCORES.with_borrow_mut(|scores| unsafe { attend(&queries, scores, out) });
        }
    }

    /// The sequence's blocks of a key head.
    fn blocks<'q>(&'q self, data: &'q [Line], head: usize) -> Blocks<'q> {
        let lines = self.spec.block_lines();
        Blocks {
            data,
            ids: Some(self.blocks),
            stride: self.spec.kv_heads * lines,
            offset: head * lines,
        }
    }
}

/// Writes the keys and values of the new tokens. A token's values are far apart in memory, so all
/// threads share the work: each takes a share of the blocks, of whatever sequence.
fn write_tokens(data: &mut [Line], qkv: &[f32], news: &[NewTokens], spec: Attention) {
    let size = spec.kv_heads * spec.block_lines();
    let positions = news.iter().flat_map(|n| {
        (n.past..n.past + n.count).map(|p| (n.blocks[p / BLOCK_TOKENS] as usize, p % BLOCK_TOKENS))
    });
    let mut tokens: Vec<_> = positions.zip(qkv.chunks_exact(spec.columns())).collect();
    tokens.sort_by_key(|&((block, _), _)| block);
    let mut parts = Vec::new();
    let (mut rest, mut before) = (data, 0);
    for part in tokens.chunk_by(|a, b| a.0.0 == b.0.0) {
        let block = part[0].0.0;
        let (_, from) = rest.split_at_mut((block - before) * size);
        let (to, behind) = from.split_at_mut(size);
        parts.push((to, part));
        (rest, before) = (behind, block + 1);
    }
    let share = parts.len().div_ceil(pool::threads()).max(1);
    pool::for_each(parts.chunks_mut(share), |parts| {
        for (block, tokens) in parts {
            for &((_, slot), row) in *tokens {
                write_token(block, slot, row, &spec);
            }
        }
    });
}

/// Writes a token's keys and values of all heads to its block.
fn write_token(block: &mut [Line], slot: usize, row: &[f32], spec: &Attention) {
    for (head, to) in block.chunks_exact_mut(spec.block_lines()).enumerate() {
        let key = &row[spec.key_column(head)..][..spec.head_dim];
        let value = &row[spec.value_column(head)..][..spec.head_dim];
        spec.write_token(to, slot, key, value);
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
        new.store_rows(keys, &part, spec.key_column(0))?;
        new.store_rows(values, &part, spec.value_column(0))?;
        let total = new.past + new.count;
        let slots = Tensor::from_iter((0..total).map(|p| new.slot(p) as u32), qkv.device())?;
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

impl NewTokens<'_> {
    /// Row of a cache of rows that belongs to the token at `position`.
    fn slot(&self, position: usize) -> usize {
        self.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
    }

    /// Stores keys or values of the new tokens: columns of `rows` from `column` on, as many as
    /// `cache` has.
    fn store_rows(&self, cache: &Tensor, rows: &Tensor, column: usize) -> Result<()> {
        let columns = rows.narrow(1, column, cache.dim(1)?)?.contiguous()?;
        (0..self.count).try_for_each(|i| {
            cache.slice_set(&columns.narrow(0, i, 1)?, 0, self.slot(self.past + i))
        })
    }
}

#[cfg(test)]
mod tests;
