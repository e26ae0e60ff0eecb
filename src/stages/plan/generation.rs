//! The memory of generation: the cache as the generator reserves it, the panels of the policy's
//! matrices, and the states at the boundary.

use kernels::host::product::{Panels, ProductKernel};
use rollout::{BLOCK_TOKENS, CacheBudget, Error, GenerationSettings, LastToken, Request};

use crate::config::Device;
use crate::model::attention_of;
use crate::model::config::{DecoderConfig, LM_HEAD, TensorSpec, layer_of, weight};
use crate::model::generator::cache_spec;
use crate::ops::attention::cached::Cache;
use crate::ops::backend::Backend;

/// Prompts that are completed together.
#[derive(Clone, Copy, Debug)]
pub struct PromptBatch {
    /// The number of prompts.
    pub count: usize,
    /// Tokens of each prompt.
    pub tokens: usize,
    /// Completions of each prompt.
    pub samples: usize,
    /// Most tokens of a completion.
    pub max_new_tokens: usize,
    /// Whether the last token of a completion is read.
    pub last_token: LastToken,
}

/// The cache that a generation reserves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheReserve {
    /// The number of blocks.
    pub blocks: usize,
    /// Bytes of the blocks in all layers.
    pub bytes: usize,
}

impl CacheReserve {
    /// Tokens that the cache has room for.
    pub fn tokens(&self) -> usize {
        self.blocks * BLOCK_TOKENS
    }
}

/// The cache that a generation on `device` reserves if at most `max_batch` sequences run at once.
///
/// # Errors
/// If a prompt does not fit into the context, or one sequence does not fit into the cache.
pub fn reserve(
    decoder: &DecoderConfig,
    prompts: PromptBatch,
    max_batch: usize,
    cache: CacheBudget,
    device: Device,
) -> Result<CacheReserve, Error> {
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
    let mut spec = cache_spec(decoder, &Backend::CPU);
    if device.is_gpu() {
        let (attention, layers) = (attention_of(decoder, 0), decoder.num_hidden_layers);
        spec.block_bytes = Cache::gpu_block_bytes(attention, layers);
    }
    let blocks = rollout::check(&vec![request; prompts.count], &settings, &spec)? as usize;
    Ok(CacheReserve {
        blocks,
        bytes: blocks * spec.block_bytes,
    })
}

/// Bytes of the states that a generation keeps, `width` numbers for each token that is read. The
/// samples of a prompt share its states.
pub fn states(prompts: PromptBatch, width: usize) -> usize {
    let read = match prompts.last_token {
        LastToken::Read => prompts.max_new_tokens,
        LastToken::Unread => prompts.max_new_tokens.saturating_sub(1),
    };
    let tokens = prompts.count * (prompts.tokens + prompts.samples * read);
    tokens * width * size_of::<f32>()
}

/// Bytes of the panels that generation keeps: a copy of each matrix of the decoder's layers, its
/// head and `adapters`, packed for the products of `kernel`.
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
