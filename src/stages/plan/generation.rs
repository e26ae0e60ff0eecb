//! What generation takes: the cache, as the generator reserves it, and the panels that it keeps of the policy's matrices.

use rollout::{BLOCK_TOKENS, CacheBudget, Error, GenerationSettings, LastToken, Request};

use crate::model::config::{DecoderConfig, LM_HEAD, TensorSpec, layer_of, weight};
use crate::model::generator::cache_spec;
use crate::ops::backend::Backend;
use crate::ops::product::{Panels, ProductKernel};

/// Prompts that are continued together.
#[derive(Clone, Copy, Debug)]
pub struct Prompts {
    /// How many.
    pub count: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Completions of each.
    pub samples: usize,
    /// Most tokens of a completion.
    pub max_new_tokens: usize,
    /// Whether its last one is read.
    pub last_token: LastToken,
}

/// The cache of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserve {
    /// Blocks.
    pub blocks: usize,
    /// Their bytes in all layers.
    pub bytes: usize,
}

impl Reserve {
    /// Tokens that it has room for.
    pub fn tokens(&self) -> usize {
        self.blocks * BLOCK_TOKENS
    }
}

/// The cache that a generation on the CPU reserves, at most `max_batch` sequences going at once.
///
/// # Errors
/// If a prompt does not fit into the context, or one sequence not into the cache.
pub fn reserve(
    decoder: &DecoderConfig,
    prompts: Prompts,
    max_batch: usize,
    cache: CacheBudget,
) -> Result<Reserve, Error> {
    let request = Request {
        key: 0,
        prompt: vec![0; prompts.tokens],
        max_new_tokens: prompts.max_new_tokens,
        min_new_tokens: 0,
        samples: prompts.samples,
    };
    let settings = GenerationSettings {
        max_batch,
        cache,
        last_token: prompts.last_token,
        ..GenerationSettings::default()
    };
    let spec = cache_spec(decoder, &Backend::CPU);
    let blocks = rollout::check(&vec![request; prompts.count], &settings, &spec)? as usize;
    Ok(Reserve {
        blocks,
        bytes: blocks * spec.block_bytes,
    })
}

/// Bytes of the states that a generation keeps of them, `width` numbers a token that is read. Samples hold their prompt's in common.
pub fn states(prompts: Prompts, width: usize) -> usize {
    let read = match prompts.last_token {
        LastToken::Read => prompts.max_new_tokens,
        LastToken::Unread => prompts.max_new_tokens.saturating_sub(1),
    };
    let tokens = prompts.count * (prompts.tokens + prompts.samples * read);
    tokens * width * size_of::<f32>()
}

/// Bytes of the panels that generation with a decoder keeps, `adapters` on it among them: every matrix of its layers and the head
/// once more, packed for `kernel`.
pub fn panels(decoder: &DecoderConfig, adapters: &[TensorSpec], kernel: ProductKernel) -> usize {
    let names = decoder.family.names();
    let head = match decoder.tie_word_embeddings {
        true => weight(names.embedding),
        false => weight(LM_HEAD),
    };
    let tensors = decoder.tensors();
    let read = |spec: &&TensorSpec| layer_of(&spec.name).is_some() || spec.name == head;
    let panels = |spec: &TensorSpec| match &spec.shape[..] {
        &[outputs, inputs] => Panels::bytes_of(kernel, outputs, inputs),
        _ => 0,
    };
    tensors
        .iter()
        .filter(read)
        .chain(adapters)
        .map(panels)
        .sum()
}
