//! The work of a decoding step's attention, made once for all layers.

use crate::attention::{BLOCK_TOKENS, NewTokens};
use crate::device::array::{Array, Gpu};
use crate::device::error::{KernelError, Result};

/// Rows of a tile, for each variant of the kernels. A row is a pair of a token and a query head of
/// one group.
const TILE_ROWS: [usize; 3] = [4, 8, 16];
/// Threads of a block, and keys of a split.
pub(super) const SPLIT: usize = 128;
/// Tiles of a sequence up to which each split of its keys has a block of its own: there are too
/// few tiles to fill the device.
const MOST_SPLIT_TILES: usize = 4;
/// Tokens of a sequence, and their rows, as a kernel counts them.
const MOST_ROWS: usize = 1 << 31;
/// Blocks of a cache whose slots a kernel can number.
const MOST_BLOCKS: usize = (1 << 32) / BLOCK_TOKENS;

/// New tokens of a batch of sequences, and the blocks that hold their keys and values.
pub struct PagedStep {
    tokens: usize,
    /// Query heads of one key head.
    pub(super) group: usize,
    /// Above every block.
    pub(super) blocks: usize,
    /// Of each new token its block times 16, plus its place in the block.
    pub(super) slots: Array<u32>,
    /// Of each sequence its first new token, new tokens, earlier tokens, and place in `table`.
    pub(super) sequences: Array<u32>,
    /// The blocks of all sequences.
    pub(super) table: Array<u32>,
    /// The work of each variant that has any.
    pub(super) tiles: Vec<Tiles>,
}

/// The tiles of one variant of the kernels.
pub(super) struct Tiles {
    /// Index of the variant.
    pub variant: usize,
    /// Of each item its sequence, first row, and split or [`WHOLE`].
    pub items: Array<u32>,
    /// Number of items.
    pub count: usize,
    /// Items with one split, which are the first ones.
    pub parts: usize,
    /// Of each tile of several items its sequence, first row, and first item.
    pub joined: Array<u32>,
}

/// Stands for all splits of a tile.
const WHOLE: u32 = u32::MAX;

impl Tiles {
    /// Rows of a tile.
    pub fn rows(&self) -> usize {
        TILE_ROWS[self.variant]
    }
}

/// Work of one variant, on the host.
#[derive(Default)]
struct TilePlan {
    parts: Vec<[u32; 3]>,
    joined: Vec<[u32; 3]>,
    /// Tiles with all their splits, and for each the number of keys.
    whole: Vec<(usize, [u32; 3])>,
}

impl PagedStep {
    /// A step of these sequences, in layers with `group` query heads for each key head.
    ///
    /// # Errors
    /// A sequence with too few blocks or too many tokens, block numbers beyond 2²⁸, and errors of
    /// the device.
    pub fn new(gpu: &Gpu, news: &[NewTokens], group: usize) -> Result<Self> {
        news.iter().try_for_each(|new| check(new, group))?;
        let (mut slots, mut sequences, mut table) = (Vec::new(), Vec::new(), Vec::new());
        let mut plans: [TilePlan; 3] = Default::default();
        for (index, new) in news.iter().enumerate() {
            let numbers = [slots.len(), new.count, new.past, table.len()];
            sequences.extend(numbers.map(|n| n as u32));
            slots.extend((new.past..new.past + new.count).map(|position| {
                new.blocks[position / BLOCK_TOKENS] * BLOCK_TOKENS as u32
                    + (position % BLOCK_TOKENS) as u32
            }));
            table.extend_from_slice(new.blocks);
            add_tiles(&mut plans, index as u32, new, group);
        }
        if slots.len().max(table.len()) >= MOST_ROWS {
            return refuse(format!("{} tokens in a step", slots.len()));
        }
        let blocks = table.iter().max().map_or(0, |&block| block as usize + 1);
        let tiles = plans.into_iter().enumerate();
        let tiles = tiles.filter(|(_, plan)| !(plan.parts.is_empty() && plan.whole.is_empty()));
        Ok(Self {
            tokens: slots.len(),
            group,
            blocks,
            slots: gpu.upload(&slots)?,
            sequences: gpu.upload(&sequences)?,
            table: gpu.upload(&table)?,
            tiles: tiles
                .map(|(variant, plan)| plan.upload(gpu, variant))
                .collect::<Result<_>>()?,
        })
    }

    /// Number of new tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl TilePlan {
    fn upload(mut self, gpu: &Gpu, variant: usize) -> Result<Tiles> {
        // A grid that begins with the longest tiles ends evenly.
        self.whole.sort_by_key(|&(keys, _)| std::cmp::Reverse(keys));
        let parts = self.parts.len();
        let whole = self.whole.iter().map(|(_, item)| *item);
        let items: Vec<[u32; 3]> = self.parts.into_iter().chain(whole).collect();
        Ok(Tiles {
            variant,
            count: items.len(),
            parts,
            items: gpu.upload(items.as_flattened())?,
            joined: gpu.upload(self.joined.as_flattened())?,
        })
    }
}

/// Adds the tiles of a sequence to those of the narrowest variant that takes all its rows at once,
/// or of the widest.
fn add_tiles(plans: &mut [TilePlan; 3], index: u32, new: &NewTokens, group: usize) {
    let rows = new.count * group;
    let variant = TILE_ROWS.iter().position(|&tile| rows <= tile).unwrap_or(2);
    let (plan, tile) = (&mut plans[variant], TILE_ROWS[variant]);
    for first in (0..rows).step_by(tile) {
        let keys = new.past + ((first + tile).min(rows) - 1) / group + 1;
        let splits = keys.div_ceil(SPLIT) as u32;
        let item = |split| [index, first as u32, split];
        if splits == 1 || rows.div_ceil(tile) > MOST_SPLIT_TILES {
            plan.whole.push((keys, item(WHOLE)));
        } else {
            plan.joined.push(item(plan.parts.len() as u32));
            plan.parts.extend((0..splits).map(item));
        }
    }
}

fn check(new: &NewTokens, group: usize) -> Result<()> {
    let tokens = new.past.saturating_add(new.count);
    if tokens.saturating_mul(group.max(1)) >= MOST_ROWS {
        return refuse(format!("a sequence of {tokens} tokens"));
    }
    if new.blocks.len() * BLOCK_TOKENS < tokens {
        let blocks = new.blocks.len();
        return refuse(format!("a sequence of {tokens} tokens in {blocks} blocks"));
    }
    match new
        .blocks
        .iter()
        .find(|&&block| block as usize >= MOST_BLOCKS)
    {
        Some(block) => refuse(format!("a cache block with number {block}")),
        None => Ok(()),
    }
}

fn refuse<T>(what: String) -> Result<T> {
    Err(KernelError::Shape {
        message: format!("cached attention: {what}"),
    })
}
