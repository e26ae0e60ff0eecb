//! Attention of new tokens against a block-paged cache.
//!
//! The generator says which blocks a sequence holds and how many tokens lie in them; the cache stores keys and values of every
//! layer and computes. On the CPU a block has the layout of the training kernel; elsewhere keys and values are rows of tensors
//! and the mathematics is composed of candle's operations.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::composed::attend_dense;
use super::kernel::{Scratch, attend_same};
use super::{Attention, storage};
use crate::ops::dispatch::has_kernels;
use crate::ops::product::LANES;
use crate::ops::{pool, profile};

/// Tokens in one cache block.
pub const BLOCK_TOKENS: usize = LANES;

/// New rows of one sequence in a step.
#[derive(Clone, Copy, Debug)]
pub struct NewTokens<'a> {
    /// Number of new tokens; their rows follow those of the sequences before.
    pub count: usize,
    /// Tokens that the blocks hold already.
    pub past: usize,
    /// The sequence's blocks in order.
    pub blocks: &'a [u32],
}

/// Keys and values of all layers, in blocks.
pub struct Cache {
    layers: Vec<Store>,
    spec: Attention,
    blocks: usize,
}

enum Store {
    /// `[block][kv head][block_len]`
    Blocks(Vec<f32>),
    /// `[block · BLOCK_TOKENS, kv_heads · head_dim]`
    Rows { keys: Tensor, values: Tensor },
}

impl Cache {
    /// Room for `blocks` blocks in each of `layers` layers.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(spec: Attention, layers: usize, blocks: usize, device: &Device) -> Result<Self> {
        let store = || match has_kernels(device) {
            true => Ok(Store::blocks(spec, blocks)),
            false => Store::rows(spec, blocks, device),
        };
        Ok(Self {
            layers: (0..layers).map(|_| store()).collect::<Result<_>>()?,
            spec,
            blocks,
        })
    }

    /// Number of blocks a layer holds.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes that one block takes in all layers; on the CPU values are padded to whole panels.
    pub fn block_bytes(spec: Attention, layers: usize, device: &Device) -> usize {
        let elements = match has_kernels(device) {
            true => spec.block_len(),
            false => 2 * BLOCK_TOKENS * spec.head_dim,
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

    /// Stores the new keys and values of `qkv` (`[new tokens, columns]`) and attends: `[new tokens, outputs]`. The window may
    /// differ from layer to layer; heads may not.
    ///
    /// # Errors
    /// If shapes disagree or a sequence has too few blocks.
    pub fn attend(
        &mut self,
        layer: usize,
        qkv: &Tensor,
        news: &[NewTokens],
        spec: Attention,
    ) -> Result<Tensor> {
        let _span = profile::span("cached attention");
        let rows: usize = news.iter().map(|n| n.count).sum();
        if qkv.dims() != [rows, spec.columns()] {
            bail!(
                "cached attention: input {:?} where [{rows}, {}] is needed",
                qkv.dims(),
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
        match &mut self.layers[layer] {
            Store::Blocks(data) => attend_blocks(data, qkv, news, spec),
            Store::Rows { keys, values } => attend_rows(keys, values, qkv, news, spec),
        }
    }
}

impl Store {
    fn blocks(spec: Attention, blocks: usize) -> Self {
        Self::Blocks(vec![0f32; blocks * spec.kv_heads * spec.block_len()])
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
                let len = spec.kv_heads * spec.block_len();
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

fn attend_blocks(
    data: &mut [f32],
    qkv: &Tensor,
    news: &[NewTokens],
    spec: Attention,
) -> Result<Tensor> {
    let (columns, outputs) = (spec.columns(), spec.outputs());
    let qkv_tensor = qkv.contiguous()?;
    let out = storage::read(&qkv_tensor, |qkv| {
        write_tokens(data, qkv, news, spec);
        let rows: Vec<(&NewTokens, usize)> = news
            .iter()
            .flat_map(|n| (0..n.count).map(move |i| (n, n.past + i)))
            .collect();
        let mut out = vec![0f32; rows.len() * outputs];
        let width = spec.group() * spec.head_dim;
        pool::for_each(out.chunks_exact_mut(outputs).enumerate(), |(row, out)| {
            let (new, position) = rows[row];
            let mut scratch = Scratch::default();
            for (head, out) in out.chunks_exact_mut(width).enumerate() {
                let block = |&b: &u32| block_of(data, b as usize, head, &spec);
                let blocks: Vec<&[f32]> = new.blocks[..position / BLOCK_TOKENS + 1]
                    .iter()
                    .map(block)
                    .collect();
                let query = &qkv[row * columns + head * width..][..width];
                attend_same(&spec, query, position, &blocks, &mut scratch, out);
            }
        });
        out
    })?;
    Tensor::from_vec(out, (qkv.dim(0)?, outputs), qkv.device())
}

fn block_of<'a>(data: &'a [f32], block: usize, head: usize, spec: &Attention) -> &'a [f32] {
    &data[(block * spec.kv_heads + head) * spec.block_len()..][..spec.block_len()]
}

fn write_tokens(data: &mut [f32], qkv: &[f32], news: &[NewTokens], spec: Attention) {
    let mut rows = qkv.chunks_exact(spec.columns());
    let len = spec.block_len();
    for new in news {
        for (position, row) in (new.past..new.past + new.count).zip(&mut rows) {
            let block = new.blocks[position / BLOCK_TOKENS] as usize;
            for head in 0..spec.kv_heads {
                let key = &row[spec.key_column(head)..][..spec.head_dim];
                let value = &row[spec.value_column(head)..][..spec.head_dim];
                let to = &mut data[(block * spec.kv_heads + head) * len..][..len];
                spec.write_token(to, position % BLOCK_TOKENS, key, value);
            }
        }
    }
}

fn attend_rows(
    keys: &Tensor,
    values: &Tensor,
    qkv: &Tensor,
    news: &[NewTokens],
    spec: Attention,
) -> Result<Tensor> {
    let (mut at, mut parts) = (0, Vec::with_capacity(news.len()));
    let width = spec.kv_heads * spec.head_dim;
    for new in news {
        let part = qkv.narrow(0, at, new.count)?;
        at += new.count;
        for i in 0..new.count {
            let position = new.past + i;
            let slot = new.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS
                + position % BLOCK_TOKENS;
            let row = part.narrow(0, i, 1)?;
            keys.slice_set(
                &row.narrow(1, spec.key_column(0), width)?.contiguous()?,
                0,
                slot,
            )?;
            values.slice_set(
                &row.narrow(1, spec.value_column(0), width)?.contiguous()?,
                0,
                slot,
            )?;
        }
        let total = new.past + new.count;
        let slots = (0..total).map(|p| {
            new.blocks[p / BLOCK_TOKENS] * BLOCK_TOKENS as u32 + (p % BLOCK_TOKENS) as u32
        });
        let slots = Tensor::from_iter(slots, qkv.device())?;
        let heads = |t: &Tensor| {
            t.index_select(&slots, 0)?
                .reshape((total, spec.kv_heads, spec.head_dim))
        };
        let queries = part.narrow(1, 0, spec.outputs())?.reshape((
            new.count,
            spec.query_heads,
            spec.head_dim,
        ))?;
        parts.push(attend_dense(
            &queries,
            &heads(keys)?,
            &heads(values)?,
            new.past,
            spec,
        )?);
    }
    Tensor::cat(&parts, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::{Segments, attend};
    use crate::ops::dispatch::without_kernels;
    use rollout::random::{Key, Purpose};

    fn noise(rows: usize, columns: usize) -> Tensor {
        let key = Key::new(5, Purpose::Init);
        let data: Vec<f32> = (0..rows * columns)
            .map(|i| key.normal_pair(i as u64, 0)[0] as f32)
            .collect();
        Tensor::from_vec(data, (rows, columns), &Device::Cpu).expect("shape fits")
    }

    fn rows_cache(spec: Attention, blocks: usize) -> Cache {
        let store = Store::rows(spec, blocks, &Device::Cpu).expect("room");
        Cache {
            layers: vec![store],
            spec,
            blocks,
        }
    }

    /// Feeds a sequence in pieces through scattered blocks and returns all rows.
    fn in_pieces(
        cache: &mut Cache,
        qkv: &Tensor,
        pieces: &[usize],
        spec: Attention,
    ) -> Result<Tensor> {
        let (mut past, mut parts) = (0, Vec::new());
        for &count in pieces {
            let new = NewTokens {
                count,
                past,
                blocks: &[7, 2, 5],
            };
            parts.push(cache.attend(0, &qkv.narrow(0, past, count)?, &[new], spec)?);
            past += count;
        }
        Tensor::cat(&parts, 0)
    }

    #[test]
    fn pieces_through_blocks_have_the_bits_of_the_packed_forward() -> Result<()> {
        for (kv_heads, head_dim, window) in [
            (2, 8, None),
            (4, 32, None),
            (1, 24, Some(9)),
            (2, 16, Some(20)),
        ] {
            let spec = Attention {
                query_heads: 4,
                kv_heads,
                head_dim,
                scale: 0.3,
                window,
            };
            let qkv = noise(41, spec.columns());
            let whole = attend(&qkv, &Segments::from_lengths([41]), spec)?;
            let pieces = [11, 1, 1, 7, 1, 20];
            let mut cache = Cache::new(spec, 1, 8, &Device::Cpu)?;
            let cached = in_pieces(&mut cache, &qkv, &pieces, spec)?;
            assert_eq!(
                cached.to_vec2::<f32>()?,
                whole.to_vec2::<f32>()?,
                "{spec:?}"
            );
            let composed = in_pieces(&mut rows_cache(spec, 8), &qkv, &pieces, spec)?;
            let gap = (composed - whole)?
                .abs()?
                .flatten_all()?
                .max(0)?
                .to_scalar::<f32>()?;
            assert!(gap < 1e-5, "{spec:?}: {gap}");
        }
        Ok(())
    }

    #[test]
    fn a_block_takes_the_bytes_that_are_said() -> Result<()> {
        let spec = Attention {
            query_heads: 4,
            kv_heads: 2,
            head_dim: 24,
            scale: 1.0,
            window: None,
        };
        let elements = |cache: &Cache| -> usize {
            let of = |layer: &Store| match layer {
                Store::Blocks(data) => data.len(),
                Store::Rows { keys, values } => keys.elem_count() + values.elem_count(),
            };
            cache.layers.iter().map(of).sum()
        };
        let check = || {
            let cache = Cache::new(spec, 3, 5, &Device::Cpu)?;
            let said = Cache::block_bytes(spec, 3, &Device::Cpu);
            assert_eq!(elements(&cache) * size_of::<f32>(), 5 * said);
            Ok(())
        };
        check()?;
        without_kernels(check)
    }

    #[test]
    fn copied_blocks_hold_the_same_tokens() -> Result<()> {
        let spec = Attention {
            query_heads: 2,
            kv_heads: 1,
            head_dim: 8,
            scale: 1.0,
            window: None,
        };
        let qkv = noise(6, spec.columns());
        for mut cache in [Cache::new(spec, 1, 4, &Device::Cpu)?, rows_cache(spec, 4)] {
            let mut last = Vec::new();
            for block in [0u32, 3] {
                if block == 0 {
                    cache.attend(
                        0,
                        &qkv.narrow(0, 0, 5)?,
                        &[NewTokens {
                            count: 5,
                            past: 0,
                            blocks: &[0],
                        }],
                        spec,
                    )?;
                    cache.copy(&[(0, 3)])?;
                }
                let new = NewTokens {
                    count: 1,
                    past: 5,
                    blocks: &[block],
                };
                last.push(
                    cache
                        .attend(0, &qkv.narrow(0, 5, 1)?, &[new], spec)?
                        .to_vec2::<f32>()?,
                );
            }
            assert_eq!(last[0], last[1]);
        }
        Ok(())
    }
}
