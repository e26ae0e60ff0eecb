//! The decoder's interface to the generator: cache, next-token logits, draws.
//!
//! It borrows the live parameters, so nothing is copied or synchronised between training and
//! rollout. While it exists, the parameters keep their packed panels, which are packed again after
//! an update.

use candle_core::{DType, Device, Tensor};
use kernels::attention::NewTokens;
use kernels::host::pool;
use rollout::device::draw_rows;
use rollout::{CacheSpec, Chunk, Draw, Drawn, Model, ModelResult, ModelStep, Next, draw_row};

use super::Decoder;
use super::block::attention_of;
use super::boundary::Collector;
use super::config::DecoderConfig;
use crate::ops::attention::cached::Cache;
use crate::ops::backend::Backend;
use crate::ops::place::{Gpu, read, select_rows};
use crate::ops::work::{self, DeviceWork};
use crate::ops::{profile, storage};

// The generator's blocks are the kernel's.
/// Sizes of a decoder's cache.
pub fn cache_spec(config: &DecoderConfig, backend: &Backend) -> CacheSpec {
    let (spec, layers) = (attention_of(config, 0), config.num_hidden_layers);
    CacheSpec {
        block_bytes: Cache::block_bytes(spec, layers, backend),
        max_positions: config.max_position_embeddings,
        vocab_size: config.vocab_size,
    }
}

/// A decoder that generates.
pub struct Generator<'a> {
    decoder: &'a Decoder,
    cache: Option<Cache>,
    collector: Option<Collector>,
}

impl<'a> Generator<'a> {
    /// Borrows the live weights of `decoder`.
    pub fn new(decoder: &'a Decoder) -> Self {
        decoder.params().iter().for_each(|p| p.keep_panels(true));
        Self {
            decoder,
            cache: None,
            collector: None,
        }
    }

    /// A generator that collects the input of layer `layer` for every token.
    pub fn keeping(decoder: &'a Decoder, layer: usize) -> Self {
        let width = decoder.decoder_config().hidden_size;
        let mut generator = Self::new(decoder);
        generator.collector = Some(Collector::new(layer, width));
        generator
    }

    /// Takes the collected states.
    pub fn take_states(&mut self) -> Option<Collector> {
        self.collector.take()
    }
}

impl Drop for Generator<'_> {
    fn drop(&mut self) {
        self.decoder
            .params()
            .iter()
            .for_each(|p| p.keep_panels(false));
    }
}

impl Model for Generator<'_> {
    type Logits = Tensor;

    fn cache_spec(&self) -> CacheSpec {
        cache_spec(
            self.decoder.decoder_config(),
            self.decoder.params().backend(),
        )
    }

    fn reserve(&mut self, blocks: usize) -> ModelResult<()> {
        let (spec, layers) = (
            self.decoder.attention(0),
            self.decoder.decoder_config().num_hidden_layers,
        );
        if self.cache.as_ref().is_none_or(|c| c.blocks() < blocks) {
            let _work = work::begin(DeviceWork::Cache);
            self.cache = None;
            self.cache = Some(Cache::new(
                spec,
                layers,
                blocks,
                self.decoder.params().backend(),
            )?);
        }
        Ok(())
    }

    fn forward(&mut self, step: &ModelStep<'_>) -> ModelResult<Tensor> {
        let _work = work::begin(DeviceWork::Generation);
        let cache = self
            .cache
            .as_mut()
            .ok_or("the cache was not reserved before the first step")?;
        cache.copy(step.copies)?;
        let (decoder, layer) = (
            self.decoder,
            self.collector.as_ref().map_or(0, Collector::layer),
        );
        let ids: Vec<u32> = step.chunks.iter().flat_map(|c| c.tokens).copied().collect();
        let news: Vec<NewTokens> = step.chunks.iter().map(new_tokens).collect();
        let hidden = decoder.hidden_at_cached(layer, &ids, &news, cache)?;
        if let Some(collector) = &mut self.collector {
            collect(collector, step, &hidden)?;
        }
        let going = continuing(step);
        if going.is_empty() {
            let vocabulary = decoder.decoder_config().vocab_size;
            // No token is drawn from these logits.
            return Ok(Tensor::zeros((0, vocabulary), DType::F32, &Device::Cpu)?);
        }
        let hidden = rows_of(step, hidden, decoder.params().backend())?;
        let hidden = decoder.forward_from_cached(layer, hidden, &going, cache)?;
        Ok(decoder.logits(&hidden)?)
    }

    fn draw(&mut self, logits: &Tensor, draws: &[Draw<'_>]) -> ModelResult<Vec<Drawn>> {
        let _work = work::begin(DeviceWork::Generation);
        let (_span, vocabulary) = (profile::span("draw"), logits.dim(1)?);
        let backend = self.decoder.params().backend();
        if let Backend::Gpu(..) = backend {
            return drawn_on_device(logits, vocabulary, draws, backend);
        }
        let on_host = logits.to_device(&Device::Cpu)?;
        let drawn = storage::read(&on_host, |logits| {
            pool::map(draws, |d| {
                draw_row(&logits[d.row * vocabulary..][..vocabulary], d)
            })
        })?;
        Ok(drawn.into_iter().collect::<Result<_, _>>()?)
    }
}

fn drawn_on_device(
    logits: &Tensor,
    vocabulary: usize,
    draws: &[Draw<'_>],
    backend: &Backend,
) -> ModelResult<Vec<Drawn>> {
    let mut drawn = Ok(Vec::new());
    read::<Gpu, _>(logits, backend, |logits| {
        drawn = draw_rows(logits, vocabulary, draws);
        Ok(())
    })?;
    drawn
}

fn new_tokens<'c>(chunk: &Chunk<'c>) -> NewTokens<'c> {
    NewTokens {
        count: chunk.tokens.len(),
        past: chunk.past,
        blocks: chunk.blocks,
    }
}

/// The new tokens of each sequence that continues.
fn continuing<'c>(step: &ModelStep<'c>) -> Vec<NewTokens<'c>> {
    let continues = |chunk: &&Chunk| chunk.next == Next::Continues;
    step.chunks
        .iter()
        .filter(continues)
        .map(new_tokens)
        .collect()
}

/// The rows of `x` that belong to sequences that continue; `x` has the rows of all sequences.
fn rows_of(step: &ModelStep<'_>, x: Tensor, backend: &Backend) -> candle_core::Result<Tensor> {
    let of_each = |chunk: &Chunk| std::iter::repeat_n(chunk.next, chunk.tokens.len());
    let all = (0..).zip(step.chunks.iter().flat_map(of_each));
    let rows: Vec<u32> = all
        .filter_map(|(row, next)| (next == Next::Continues).then_some(row))
        .collect();
    match rows.len() == x.dim(0)? {
        true => Ok(x),
        false => select_rows(&x, &rows, backend),
    }
}

/// Adds each chunk's rows of `x` to the collector.
fn collect(collector: &mut Collector, step: &ModelStep<'_>, x: &Tensor) -> candle_core::Result<()> {
    let (width, on_host) = (x.dim(1)?, x.to_device(&candle_core::Device::Cpu)?);
    storage::read(&on_host, |rows| {
        let mut rest = rows;
        for chunk in step.chunks {
            let (own, others) = rest.split_at(chunk.tokens.len() * width);
            collector.add(chunk.sequence, chunk.past, own);
            rest = others;
        }
    })
}
