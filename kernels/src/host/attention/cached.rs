//! Attention of new tokens against the keys and values of a cache of blocks.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use super::kernel::{Blocks, Queries, attend};
use crate::attention::{Attention, BLOCK_TOKENS, NewTokens};
use crate::host::pool;
use crate::host::product::Destination;
use crate::host::product::lanes::{LANES, Line};
use crate::host::written::written;

/// Consecutive new tokens of one task: the rows of the largest tile.
const RUN: usize = 8;

const _: () = assert!(
    BLOCK_TOKENS == LANES,
    "a block's tokens are the lanes of a panel"
);

/// Keys and values of one layer in blocks of [`BLOCK_TOKENS`] tokens.
pub struct KeyValueBlocks {
    /// `[block][kv head][lines of a block]`
    data: Vec<Line>,
    /// Lines of one block.
    size: usize,
}

impl KeyValueBlocks {
    /// Zeros in `count` blocks for the key heads of `spec`.
    pub fn new(spec: Attention, count: usize) -> Self {
        let size = lines(&spec);
        Self {
            data: vec![Line::default(); count * size],
            size,
        }
    }

    /// Bytes of one block; values are padded to whole panels.
    pub fn block_bytes(spec: Attention) -> usize {
        lines(&spec) * size_of::<Line>()
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.data[..])
    }

    /// Copies block `from` over block `to`.
    ///
    /// # Panics
    /// If a block does not exist: a bug of the caller.
    pub fn copy(&mut self, from: usize, to: usize) {
        let size = self.size;
        self.data
            .copy_within(from * size..(from + 1) * size, to * size);
    }

    /// Stores the new keys and values of `qkv` (`[new tokens, columns]`) and returns attention over
    /// the cache, `[new tokens, outputs]`. The window may differ between calls; the heads may not.
    ///
    /// # Panics
    /// If `qkv` does not hold a row for each new token, the heads are others than those of
    /// [`Self::new`], a sequence has too few blocks, or a block does not exist: bugs of the caller.
    pub fn attend(&mut self, qkv: &[f32], news: &[NewTokens], spec: Attention) -> Vec<f32> {
        spec.check_heads();
        let rows: usize = news.iter().map(|n| n.count).sum();
        assert_eq!(qkv.len(), rows * spec.columns(), "rows of attention");
        assert_eq!(self.size, lines(&spec), "heads of a cache");
        write_tokens(&mut self.data, qkv, news, spec);
        attend_blocks(&self.data, qkv, news, spec)
    }
}

/// Lines of a block of all key heads.
fn lines(spec: &Attention) -> usize {
    spec.kv_heads * spec.block_lines()
}

fn attend_blocks(data: &[Line], qkv: &[f32], news: &[NewTokens], spec: Attention) -> Vec<f32> {
    let outputs = spec.outputs();
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
    unsafe { written(rows * outputs, write) }
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
    let size = lines(&spec);
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
