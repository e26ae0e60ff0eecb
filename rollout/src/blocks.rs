//! A pool of numbered cache blocks, each with a count of the sequences that own it.
//!
//! Not here: the contents of a block (the model's) and preemption when none is free (`scheduler`).

/// The blocks of one generation.
#[derive(Debug)]
pub struct BlockPool {
    /// Owners of each block; 0 means free.
    owners: Vec<u32>,
    /// The free blocks, the next one last.
    free: Vec<u32>,
    peak: usize,
}

impl BlockPool {
    /// `count` free blocks, numbered from 0.
    pub fn new(count: u32) -> Self {
        Self {
            owners: vec![0; count as usize],
            free: (0..count).rev().collect(),
            peak: 0,
        }
    }

    /// Blocks without an owner.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// The most blocks that were in use at once.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// A block with one owner, or `None` when all are taken.
    pub fn allocate(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.owners[block as usize] = 1;
        self.peak = self.peak.max(self.owners.len() - self.free.len());
        Some(block)
    }

    /// Adds an owner to each block.
    pub fn share(&mut self, blocks: &[u32]) {
        for &block in blocks {
            debug_assert!(self.owners[block as usize] > 0, "block {block} is free");
            self.owners[block as usize] += 1;
        }
    }

    /// Whether the block has more than one owner, and must not be written.
    pub fn is_shared(&self, block: u32) -> bool {
        self.owners[block as usize] > 1
    }

    /// Takes an owner from each block; a block without one is free.
    pub fn release(&mut self, blocks: impl IntoIterator<Item = u32>) {
        for block in blocks {
            let owners = &mut self.owners[block as usize];
            debug_assert!(*owners > 0, "block {block} is released twice");
            *owners -= 1;
            if *owners == 0 {
                self.free.push(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_free_when_its_last_owner_goes() {
        let mut pool = BlockPool::new(2);
        let first = pool.allocate().unwrap();
        pool.share(&[first]);
        assert!(pool.is_shared(first));
        let second = pool.allocate().unwrap();
        assert_eq!((pool.allocate(), pool.free(), pool.peak()), (None, 0, 2));
        pool.release([first]);
        assert_eq!(pool.free(), 0);
        assert!(!pool.is_shared(first));
        pool.release([first, second]);
        assert_eq!((pool.free(), pool.peak()), (2, 2));
    }
}
