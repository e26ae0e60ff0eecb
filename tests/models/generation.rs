//! Memory of a generation, against what `plan` lists: cache, kept states, packed panels.

use std::collections::HashMap;
use std::sync::Arc;

use collimate::config::{Device, LayersToTransform};
use collimate::model::Decoder;
use collimate::model::config::{Head, is_embedding};
use collimate::model::generator::Generator;
use collimate::model::lora::Lora;
use collimate::ops::attention::cached::Cache;
use collimate::ops::backend::Backend;
use collimate::ops::param::{Operand, Param, Trainability};
use collimate::stages::plan::generation::{PromptBatch, panels, reserve, states};
use rollout::{CacheBudget, GenerationSettings, LastToken, Request, SequenceId, generate};

use crate::memory::{load, lora, own};
use crate::support::{Anyhow, LANGUAGE_MODELS, folder, with_each_kernel};

/// The number of cache blocks of a generation, in a cache that is large enough and in one that is
/// not.
#[test]
fn the_cache_is_the_one_that_a_generation_reserves() -> Anyhow {
    for name in LANGUAGE_MODELS {
        let model = load(name, Head::LanguageModel, own(Trainability::Frozen))?;
        let layers = model.decoder_config().num_hidden_layers;
        let block = Cache::block_bytes(model.attention(0), layers, &Backend::CPU);
        let prompts = PromptBatch {
            count: 5,
            tokens: 6,
            samples: 2,
            max_new_tokens: 11,
            last_token: LastToken::Unread,
        };
        // With six prompt tokens and eleven new ones, a last token that is also read needs a block
        // of its own.
        for (cache, last_token) in [
            (CacheBudget::Unlimited, LastToken::Unread),
            (CacheBudget::Unlimited, LastToken::Read),
            (CacheBudget::Bytes(3 * block + 1), LastToken::Read),
        ] {
            let prompts = PromptBatch {
                last_token,
                ..prompts
            };
            let request = |key| Request {
                key,
                prompt: vec![3; prompts.tokens],
                max_new_tokens: prompts.max_new_tokens,
                min_new_tokens: 0,
                samples: prompts.samples,
            };
            let requests: Vec<Request> = (0..prompts.count as u64).map(request).collect();
            let settings = GenerationSettings {
                max_batch: 4,
                cache,
                last_token,
                ..GenerationSettings::default()
            };
            let output = generate(
                &mut Generator::new(&model),
                &requests,
                &settings,
                &mut |_| {},
            )?;
            let planned = reserve(model.decoder_config(), prompts, 4, cache, Device::Cpu)?;
            assert_eq!(planned.blocks, output.stats.reserved_blocks, "{name}");
            assert_eq!(planned.bytes, planned.blocks * block, "{name}");
        }
    }
    Ok(())
}

/// Bytes of the states kept for these prompts; what several sequences share counts once.
fn held_states(model: &Decoder, prompts: PromptBatch, layer: usize) -> Anyhow<usize> {
    let request = |key| Request {
        key,
        prompt: vec![3; prompts.tokens],
        max_new_tokens: prompts.max_new_tokens,
        min_new_tokens: prompts.max_new_tokens,
        samples: prompts.samples,
    };
    let requests: Vec<Request> = (0..prompts.count as u64).map(request).collect();
    let settings = GenerationSettings {
        max_batch: 4,
        last_token: prompts.last_token,
        ..GenerationSettings::default()
    };
    let mut generator = Generator::keeping(model, layer);
    let output = generate(&mut generator, &requests, &settings, &mut |_| {})?;
    let mut kept = generator.take_states().expect("states");
    let mut parts = HashMap::new();
    for completion in &output.completions {
        let id = SequenceId {
            request: completion.request,
            sample: completion.sample,
        };
        let states = kept.take(id, prompts.tokens).expect("states");
        for part in [states.prompt, states.generated] {
            parts.insert(part.as_ptr(), part);
        }
    }
    Ok(parts.values().map(|part| size_of_val(&part[..])).sum())
}

#[test]
fn states_are_those_that_a_generation_keeps() -> Anyhow {
    for name in LANGUAGE_MODELS {
        let model = load(name, Head::LanguageModel, own(Trainability::Frozen))?;
        let width = model.decoder_config().hidden_size;
        for (samples, last_token) in [
            (1, LastToken::Unread),
            (1, LastToken::Read),
            (3, LastToken::Unread),
            (3, LastToken::Read),
        ] {
            let prompts = PromptBatch {
                count: 5,
                tokens: 6,
                samples,
                max_new_tokens: 7,
                last_token,
            };
            let held = held_states(&model, prompts, 1)?;
            assert_eq!(states(prompts, width), held, "{name} {prompts:?}");
        }
    }
    Ok(())
}

/// The parameters that have packed panels after a generation.
#[test]
fn panels_are_those_that_a_generation_keeps() -> Anyhow {
    with_each_kernel(panels_are_those_kept)
}

fn panels_are_those_kept(backend: &Backend) -> Anyhow {
    let lora = lora(Some(LayersToTransform::Top(1)));
    for name in LANGUAGE_MODELS {
        let (head, frozen) = (Head::LanguageModel, |_: &_| Trainability::Frozen);
        let base = Decoder::load(&folder(name), head, 1, frozen, backend)?;
        let model = Decoder::adapt(&base, &lora, Head::LanguageModel, 1, Trainability::Frozen)?;
        for (model, adapters) in [
            (&base, Vec::new()),
            (&model, Lora::new(&lora, base.decoder_config())?.tensors()),
        ] {
            let _generator = Generator::new(model);
            let read = |param: &Arc<Param>| -> usize {
                let reads_rows = param.dims().len() != 2 || is_table(model, param);
                match param.operand() {
                    Ok(Operand::Panels(kept)) if !reads_rows => kept.bytes(),
                    _ => 0,
                }
            };
            let kept: usize = model.params().iter().map(read).sum();
            let planned = panels(model.decoder_config(), &adapters, backend.products());
            assert_eq!(planned, kept, "{name}");
        }
    }
    Ok(())
}

/// Whether an embedding is only looked up, never multiplied.
fn is_table(model: &Decoder, param: &Param) -> bool {
    let config = model.decoder_config();
    let token = format!("{}.weight", config.family.names().embedding);
    let tied = config.tie_word_embeddings && param.name() == token;
    is_embedding(param.name()) && !tied
}
