//! Continuous batching over a pool of blocks: which sequences advance, wait or are preempted.
//!
//! Sequences are ordered by (request, sample). A place in the batch goes to the first that waits,
//! if the blocks it needs are free. In a step each running sequence, first to last, takes the
//! blocks for its next tokens; when none is free, the last sequence that holds blocks is preempted:
//! it returns all of them and reads its tokens again later. So the first sequence always advances,
//! and since each fits the cache alone, all finish.
//!
//! The samples of a request begin as one: sample 0 reads the prompt, then the others fork from it,
//! sharing its blocks. A sequence copies a shared block before it writes to it, unless it is the
//! last owner.

use std::collections::BTreeSet;

use crate::blocks::BlockPool;
use crate::error::Error;
use crate::sampling::SequenceId;
use crate::sequence::SampleState;
use crate::settings::{GenerationSettings, Request};

/// All sequences of a generation; an index into them is a place in the order.
#[derive(Debug)]
pub struct Scheduler {
    pub sequences: Vec<SampleState>,
    running: BTreeSet<usize>,
    /// Sequences that could run; samples that have not forked yet are in neither set.
    waiting: BTreeSet<usize>,
    pool: BlockPool,
    max_batch: usize,
    prefill_tokens: usize,
    pub preemptions: usize,
}

/// A sequence's part in a step.
#[derive(Clone, Copy, Debug)]
pub struct ScheduledChunk {
    /// Index of the sequence.
    pub index: usize,
    /// Number of its tokens that are read.
    pub count: usize,
}

/// The chunks that a step reads and the blocks that it copies first.
#[derive(Debug)]
pub struct StepPlan {
    /// In order of the sequences; never empty.
    pub turns: Vec<ScheduledChunk>,
    /// Blocks to copy first, `(from, to)`.
    pub copies: Vec<(u32, u32)>,
}

impl Scheduler {
    pub fn new(requests: &[Request], settings: &GenerationSettings<'_>, blocks: u32) -> Self {
        let ids = |(request, r): (usize, &Request)| {
            (0..r.samples).map(move |sample| SequenceId { request, sample })
        };
        let sequences: Vec<SampleState> = requests
            .iter()
            .enumerate()
            .flat_map(ids)
            .map(|id| SampleState::new(id, &requests[id.request], settings.last_token))
            .collect();
        let starts = |(_, sequence): &(usize, &SampleState)| {
            sequence.id.sample == 0 && sequence.finish.is_none()
        };
        let waiting = sequences
            .iter()
            .enumerate()
            .filter(starts)
            .map(|(index, _)| index)
            .collect();
        Self {
            sequences,
            running: BTreeSet::new(),
            waiting,
            pool: BlockPool::new(blocks),
            max_batch: settings.max_batch,
            prefill_tokens: settings.prefill_tokens,
            preemptions: 0,
        }
    }

    /// Whether every sequence has finished.
    pub fn is_done(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// The most blocks in use at once so far.
    pub fn peak_blocks(&self) -> usize {
        self.pool.peak()
    }

    /// Decides the next step and hands out its blocks.
    pub fn plan(&mut self) -> Result<StepPlan, Error> {
        self.admit();
        let turns = self.take_turns();
        // Blocks are handed out only after all preemptions, so that no block is both copied from
        // and handed out in one step.
        let mut copies = Vec::new();
        let served = turns
            .iter()
            .all(|&turn| self.hand_out(turn, &mut copies).is_some());
        if turns.is_empty() || !served {
            return Err(Error::Stalled {
                running: self.running.len(),
                waiting: self.waiting.len(),
                free: self.pool.free(),
            });
        }
        Ok(StepPlan { turns, copies })
    }

    /// Fills the batch from those that wait, in order, as far as blocks allow.
    fn admit(&mut self) {
        while self.running.len() < self.max_batch
            && let Some(&next) = self.waiting.first()
        {
            // The first of all sequences may take from the others, so it need not wait.
            let leads = self.running.first().is_none_or(|&first| next < first);
            if !leads && !self.has_room_for(next) {
                break;
            }
            self.waiting.remove(&next);
            self.running.insert(next);
        }
    }

    /// Whether one more sequence can join without soon preempting another.
    fn has_room_for(&self, next: usize) -> bool {
        let batch = self.running.iter().chain([&next]);
        let ahead: usize = batch
            .map(|&index| self.sequences[index].blocks_ahead(&self.pool))
            .sum();
        ahead <= self.pool.free()
    }

    /// Decides which sequences advance, and by how many tokens; preempts later sequences if blocks
    /// are short.
    fn take_turns(&mut self) -> Vec<ScheduledChunk> {
        let mut turns = Vec::new();
        let mut promised = 0;
        let mut prefill = self.prefill_tokens;
        let mut next = self.running.first().copied();
        while let Some(index) = next {
            let unread = self.sequences[index].unread();
            let count = if unread == 1 { 1 } else { unread.min(prefill) };
            if count > 0
                && let Some(blocks) = self.make_room(index, count, promised)
            {
                promised += blocks;
                prefill -= if unread == 1 { 0 } else { count };
                turns.push(ScheduledChunk { index, count });
            }
            next = self.running.range(index + 1..).next().copied();
        }
        turns
    }

    /// Frees blocks until `index` can read `count` tokens besides what is promised to others;
    /// returns how many it needs, or `None` when it must wait because no later sequence has any.
    fn make_room(&mut self, index: usize, count: usize, promised: usize) -> Option<usize> {
        loop {
            // Counted again each time: a preempted sequence may have shared a block with this one.
            let needed = self.sequences[index].blocks_needed(count, &self.pool);
            if promised + needed <= self.pool.free() {
                return Some(needed);
            }
            let last = self.last_holder_after(index)?;
            self.preempt(last);
        }
    }

    fn last_holder_after(&self, index: usize) -> Option<usize> {
        let holds = |other: &&usize| !self.sequences[**other].blocks.is_empty();
        let running = self.running.range(index + 1..).rev().find(holds);
        let waiting = self.waiting.range(index + 1..).rev().find(holds);
        running.max(waiting).copied()
    }

    /// Takes a sequence's blocks and its place in the batch; it will read its tokens again.
    fn preempt(&mut self, index: usize) {
        self.running.remove(&index);
        self.waiting.insert(index);
        self.drop_blocks(index);
        self.preemptions += 1;
    }

    fn drop_blocks(&mut self, index: usize) {
        let sequence = &mut self.sequences[index];
        sequence.cached = 0;
        self.pool.release(sequence.blocks.drain(..));
    }

    /// Gives a sequence the blocks of its turn; `None` if there are too few, which `take_turns` has
    /// excluded.
    fn hand_out(&mut self, turn: ScheduledChunk, copies: &mut Vec<(u32, u32)>) -> Option<()> {
        let sequence = &mut self.sequences[turn.index];
        if let Some(tail) = sequence.shared_tail(&self.pool) {
            let shared = sequence.blocks[tail];
            let own = self.pool.allocate()?;
            copies.push((shared, own));
            sequence.blocks[tail] = own;
            self.pool.release([shared]);
        }
        for _ in 0..sequence.blocks_needed(turn.count, &self.pool) {
            sequence.blocks.push(self.pool.allocate()?);
        }
        Some(())
    }

    /// Makes `sample`, which has read nothing, another owner of all that `first` has read.
    pub fn fork(&mut self, first: usize, sample: usize) {
        let (blocks, cached) = (
            self.sequences[first].blocks.clone(),
            self.sequences[first].cached,
        );
        self.pool.share(&blocks);
        self.sequences[sample].blocks = blocks;
        self.sequences[sample].cached = cached;
        self.waiting.insert(sample);
    }

    /// Takes a finished sequence out; its blocks and its place go to the next.
    pub fn retire(&mut self, index: usize) {
        self.running.remove(&index);
        self.waiting.remove(&index);
        self.drop_blocks(index);
    }
}
