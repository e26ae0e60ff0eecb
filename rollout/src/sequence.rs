//! One sample on its way from prompt to completion: its tokens, and which of them the cache holds.

use std::sync::Arc;

use crate::blocks::BlockPool;
use crate::model::{BLOCK_TOKENS, Next};
use crate::sampling::{Drawn, SequenceId};
use crate::settings::{GenerationSettings, LastToken, Request, blocks_for};

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// At a stop id or a stop text, which it includes.
    Stop,
    /// At its limit of tokens.
    Length,
}

/// The state of one sample.
#[derive(Debug)]
pub struct SampleState {
    pub id: SequenceId,
    /// Tokens of the prompt, then the generated ones.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// Length in tokens, prompt included, at which the sequence ends.
    limit: usize,
    /// The largest number of its tokens that the model reads.
    read_to: usize,
    min_new_tokens: usize,
    pub log_probs: Vec<f32>,
    /// Over the whole vocabulary; empty before the first token whose distribution was cut.
    pub whole_log_probs: Vec<f32>,
    /// Entropies of the tokens' distributions in nats, if requested.
    pub entropies: Vec<f32>,
    pub kept: Vec<Option<Arc<[u32]>>>,
    /// The cache blocks it owns, alone or with others.
    pub blocks: Vec<u32>,
    /// Number of the sequence's tokens in the cache.
    pub cached: usize,
    pub finish: Option<Finish>,
}

impl SampleState {
    pub fn new(id: SequenceId, request: &Request, last: LastToken) -> Self {
        Self {
            id,
            tokens: request.prompt.clone(),
            prompt_len: request.prompt.len(),
            limit: request.prompt.len() + request.max_new_tokens,
            read_to: request.read_to(last),
            min_new_tokens: request.min_new_tokens,
            log_probs: Vec::new(),
            whole_log_probs: Vec::new(),
            entropies: Vec::new(),
            kept: Vec::new(),
            blocks: Vec::new(),
            cached: 0,
            finish: (request.max_new_tokens == 0).then_some(Finish::Length),
        }
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Number of tokens that the model has not read yet.
    pub fn unread(&self) -> usize {
        self.tokens.len() - self.cached
    }

    /// State of the sequence after the tokens that it holds.
    pub fn next(&self) -> Next {
        match self.finish {
            None => Next::Continues,
            Some(_) => Next::Ended,
        }
    }

    /// Ids that may not be drawn next.
    pub fn forbidden<'a>(&self, stop_ids: &'a [u32]) -> &'a [u32] {
        match self.generated().len() < self.min_new_tokens {
            true => stop_ids,
            false => &[],
        }
    }

    /// Adds a drawn token, with the ids that were kept for it, and decides whether the sequence
    /// ends with it.
    pub fn push(
        &mut self,
        drawn: &Drawn,
        kept: Option<Arc<[u32]>>,
        settings: &GenerationSettings<'_>,
    ) {
        self.tokens.push(drawn.token);
        self.push_whole(drawn.whole_log_prob, kept.is_some());
        self.log_probs.push(drawn.log_prob);
        self.entropies.extend(drawn.entropy);
        self.kept.push(kept);
        self.finish = if self.stops(drawn.token, settings) {
            Some(Finish::Stop)
        } else if self.tokens.len() >= self.limit {
            Some(Finish::Length)
        } else {
            None
        };
    }

    /// Adds a token's log-probability over the whole vocabulary, unless that is the recorded one
    /// for all tokens so far.
    fn push_whole(&mut self, log_prob: f32, cut: bool) {
        if cut && self.whole_log_probs.is_empty() {
            self.whole_log_probs.clone_from(&self.log_probs);
        }
        if cut || !self.whole_log_probs.is_empty() {
            self.whole_log_probs.push(log_prob);
        }
    }

    fn stops(&self, token: u32, settings: &GenerationSettings<'_>) -> bool {
        settings.stop_ids.contains(&token)
            || self.generated().len() >= self.min_new_tokens
                && settings
                    .stop_text
                    .is_some_and(|ends| ends(self.generated()))
    }

    /// Free blocks needed to read its next `count` tokens: new ones, and one to copy the last block
    /// into if others own it too.
    pub fn blocks_needed(&self, count: usize, pool: &BlockPool) -> usize {
        let total = blocks_for(self.cached + count);
        total - self.blocks.len() + usize::from(self.shared_tail(pool).is_some())
    }

    /// Free blocks needed to read all its tokens and to continue for one block of tokens.
    pub fn blocks_ahead(&self, pool: &BlockPool) -> usize {
        let end = (self.tokens.len() + BLOCK_TOKENS).min(self.read_to);
        self.blocks_needed(end.max(self.tokens.len()) - self.cached, pool)
    }

    /// The place, among its blocks, of a partly filled one that others own too.
    pub fn shared_tail(&self, pool: &BlockPool) -> Option<usize> {
        let tail = self.cached / BLOCK_TOKENS;
        let block = self.blocks.get(tail)?;
        pool.is_shared(*block).then_some(tail)
    }
}
