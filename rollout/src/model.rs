//! The trait that a model implements for the generator. The engine implements [`Model`]; the
//! generator never sees a weight.

pub use kernels::attention::BLOCK_TOKENS;

use crate::sampling::{Draw, Drawn, SequenceId};

/// Result of a model's methods; the generator adds the step in which an error occurred.
pub type ModelResult<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Sizes of a model's cache, vocabulary and longest sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// Bytes of keys and values of one block of [`BLOCK_TOKENS`] tokens in all layers, padding
    /// included.
    pub block_bytes: usize,
    /// The longest sequence the model can read.
    pub max_positions: usize,
    /// Logits in a row.
    pub vocab_size: usize,
}

/// A language model with a block-paged cache of keys and values.
///
/// Generation does not depend on the settings of batch and cache as long as a row of logits is a
/// function of its own sequence's tokens alone, whatever else the step holds and however the
/// sequence was cut into chunks.
pub trait Model {
    /// A step's logits, `[chunks, vocab]`, wherever the model keeps them.
    type Logits;

    /// Sizes of the cache, the vocabulary and the longest sequence.
    fn cache_spec(&self) -> CacheSpec;

    /// Makes room for `blocks` blocks of [`BLOCK_TOKENS`] tokens. Called once before the first
    /// step; what an earlier generation left is not read again.
    fn reserve(&mut self, blocks: usize) -> ModelResult<()>;

    /// Copies blocks, reads each chunk's tokens into its blocks, and returns the logits that follow
    /// the last token of each chunk whose sequence continues, one row a chunk, in order; none for
    /// the others.
    fn forward(&mut self, step: &ModelStep<'_>) -> ModelResult<Self::Logits>;

    /// Draws one token for each request, in order; [`crate::draw_row`] does it for a row in memory.
    fn draw(&mut self, logits: &Self::Logits, draws: &[Draw<'_>]) -> ModelResult<Vec<Drawn>>;

    /// A sequence has finished. (One that is preempted has not: it comes again with `past` 0.)
    fn release(&mut self, _sequence: SequenceId) {}
}

/// One call of the model.
#[derive(Clone, Copy, Debug)]
pub struct ModelStep<'a> {
    /// Whole blocks to copy before any token is read, `(from, to)`. No block is copied to twice,
    /// nor both to and from, so they may run in any order.
    pub copies: &'a [(u32, u32)],
    /// Chunks to read; never empty. A sequence occurs at most once.
    pub chunks: &'a [Chunk<'a>],
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The sequence that the tokens belong to. Samples of one request share the prompt: all but the
    /// one that read it appear first with `past` > 0.
    pub sequence: SequenceId,
    /// The tokens to read, at positions `past..past + tokens.len()`; never empty.
    pub tokens: &'a [u32],
    /// Number of tokens that the sequence's blocks hold already.
    pub past: usize,
    /// The sequence's blocks in order, just enough for `past + tokens.len()` tokens. Position p
    /// lies in `blocks[p / BLOCK_TOKENS]`, row `p % BLOCK_TOKENS`. Blocks that receive a token
    /// belong to this chunk alone.
    pub blocks: &'a [u32],
    /// State of the sequence after the chunk.
    pub next: Next,
}

/// State of a sequence after the model has read a chunk of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The sequence continues: the next token may be drawn from the logits after the chunk, and is
    /// read in a later chunk.
    Continues,
    /// The sequence has ended: no further token of it is drawn, and no sequence that continues
    /// reads the chunk's blocks. A model that keeps states of each token computes these alone.
    Ended,
}
