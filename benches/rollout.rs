//! Sampling: the `generate` and `ragged` cases of the peers, and how the cost grows with threads,
//! context, batch and prompts.
//!
//!     cargo bench --bench rollout

#[path = "support/floor.rs"]
mod floor;
mod support;
#[path = "support/timed.rs"]
mod timed;

use std::time::Instant;

use anyhow::{Context, Result};
use collimate::model::Decoder;
use collimate::model::generator::Generator;
use collimate::ops::backend::Backend;
use collimate::ops::param::Trainability;
use kernels::host::product::ProductKernel;
use rollout::{GenerationOutput, GenerationSettings, GenerationStats, Model, Request, generate};
use serde_json::json;

const PROMPT: usize = 32;
const NEW: usize = 128;

/// Completion lengths of the peers' ragged case (geometric with mean 48, at most 128).
const RAGGED: [usize; 128] = [
    96, 37, 63, 27, 3, 22, 32, 7, 4, 49, 53, 57, 12, 105, 70, 97, 26, 5, 22, 29, 102, 4, 8, 43, 18,
    35, 58, 3, 86, 2, 104, 46, 16, 35, 64, 26, 22, 53, 72, 19, 19, 16, 102, 65, 2, 28, 6, 61, 50,
    39, 30, 69, 17, 21, 125, 62, 64, 8, 41, 20, 7, 72, 104, 45, 118, 7, 44, 105, 11, 128, 31, 42,
    109, 128, 78, 7, 80, 128, 39, 44, 35, 80, 87, 47, 2, 47, 22, 128, 34, 41, 42, 85, 9, 31, 6, 56,
    128, 14, 39, 39, 13, 77, 26, 50, 42, 98, 3, 2, 14, 23, 128, 72, 43, 80, 35, 83, 14, 66, 16, 42,
    80, 57, 58, 23, 2, 4, 9, 31,
];

fn main() -> Result<()> {
    support::run(&[
        ("decode tiny6 batch 8", equal),
        ("decode tiny6 batch 32", equal),
        ("decode tiny6 ragged", ragged),
        ("decode smollm2 batch 8", equal),
        ("decode smollm2 batch 32", equal),
        ("decode smollm2 ragged", ragged),
        ("decode tiny6 batch 8, fast", equal),
        ("decode tiny6 batch 32, fast", equal),
        ("decode tiny6 ragged, fast", ragged),
        ("decode smollm2 batch 8, fast", equal),
        ("decode smollm2 batch 32, fast", equal),
        ("decode smollm2 ragged, fast", ragged),
        ("decode tiny6 batch 32, one thread", one_thread),
        ("decode smollm2 batch 32, one thread", one_thread),
        ("decode tiny6 batch 8, by context", by_context),
        ("decode tiny6, batch of 1", by_batch),
        ("decode tiny6, batch of 2", by_batch),
        ("decode tiny6, batch of 4", by_batch),
        ("decode tiny6, batch of 8", by_batch),
        ("decode tiny6, batch of 16", by_batch),
        ("decode tiny6, batch of 32", by_batch),
        ("decode tiny6, batch of 64", by_batch),
        ("decode tiny6, batch of 128", by_batch),
        ("decode tiny6, batch of 256", by_batch),
        ("decode tiny6 ragged, prompts x 1", prompts),
        ("decode tiny6 ragged, prompts x 10", prompts),
        ("decode tiny6 groups of 8, shared prompts", groups),
        ("decode tiny6 groups of 8, apart", groups),
    ])
}

/// The backend of a run for cases that end in "fast", else that of `generate`.
fn backend(case: &str) -> Backend {
    match case.ends_with(", fast") {
        true => Backend::Host(ProductKernel::fastest()),
        false => Backend::CPU,
    }
}

/// Completions of equal length, all in one batch.
fn equal(case: &str) -> Result<()> {
    let model = timed::model(case, Trainability::Frozen, &backend(case))?;
    let batch = if case.contains("batch 32") { 32 } else { 8 };
    let requests = requests(&model, batch, |_| NEW);
    measure(case, &model, &requests, batch)
}

fn ragged(case: &str) -> Result<()> {
    let model = timed::model(case, Trainability::Frozen, &backend(case))?;
    measure(case, &model, &requests(&model, 128, |i| RAGGED[i]), 32)
}

/// The same case with one thread. The thread count is fixed for a process, so the case runs in its
/// own.
fn one_thread(case: &str) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global()?;
    equal(case)
}

/// Milliseconds of a step of 8 sequences as the context grows: the median of the 64 steps after the
/// prompt.
fn by_context(case: &str) -> Result<()> {
    let model = timed::model(case, Trainability::Frozen, &backend(case))?;
    for context in [128, 256, 512, 1024, 2048] {
        let mut requests = requests(&model, 8, |_| 65);
        for request in &mut requests {
            request.prompt = tokens(&model, 7, context);
        }
        let mut stamps = Vec::new();
        let settings = GenerationSettings {
            max_batch: 8,
            ..GenerationSettings::default()
        };
        let mut generator = Generator::new(&model);
        generate(&mut generator, &requests, &settings, &mut |_| {
            stamps.push(Instant::now());
        })?;
        let steps = stamps[stamps.len() - 65..].windows(2);
        let mut steps: Vec<f64> = steps.map(|w| (w[1] - w[0]).as_secs_f64()).collect();
        steps.sort_by(f64::total_cmp);
        let name = format!("{case}: {context}");
        let milliseconds = 1e3 * support::median(&steps);
        support::report(
            &name,
            json!({ "context": context, "milliseconds": milliseconds }),
        );
    }
    Ok(())
}

/// The batch size is the last word of the case's name.
fn by_batch(case: &str) -> Result<()> {
    let model = timed::model(case, Trainability::Frozen, &backend(case))?;
    let batch = case.rsplit(' ').next().context("a batch")?.parse()?;
    measure(case, &model, &requests(&model, batch, |_| 64), batch)
}

/// Ten times the prompts must take ten times the time and no more memory.
fn prompts(case: &str) -> Result<()> {
    let model = timed::model(case, Trainability::Frozen, &backend(case))?;
    let count = if case.ends_with("x 10") { 1280 } else { 128 };
    measure(
        case,
        &model,
        &requests(&model, count, |i| RAGGED[i % 128]),
        32,
    )
}

/// 8 samples for each of 16 prompts of 256 tokens.
fn groups(case: &str) -> Result<()> {
    let model = timed::model(case, Trainability::Frozen, &backend(case))?;
    let shared = case.contains("shared");
    let mut requests = requests(&model, if shared { 16 } else { 128 }, |_| 64);
    for (i, request) in requests.iter_mut().enumerate() {
        request.prompt = tokens(&model, if shared { i } else { i / 8 }, 256);
        request.samples = if shared { 8 } else { 1 };
    }
    measure(case, &model, &requests, 128)
}

fn tokens(model: &Decoder, seed: usize, count: usize) -> Vec<u32> {
    let vocabulary = model.decoder_config().vocab_size;
    (0..count)
        .map(|i| ((seed * 977 + i * 31) % vocabulary) as u32)
        .collect()
}

fn requests(model: &Decoder, count: usize, new: impl Fn(usize) -> usize) -> Vec<Request> {
    let request = |i: usize| Request {
        key: i as u64,
        prompt: tokens(model, i, PROMPT),
        max_new_tokens: new(i),
        min_new_tokens: new(i),
        samples: 1,
    };
    (0..count).map(request).collect()
}

fn sample(model: &Decoder, requests: &[Request], batch: usize) -> Result<GenerationOutput> {
    let settings = GenerationSettings {
        max_batch: batch,
        ..GenerationSettings::default()
    };
    Ok(generate(
        &mut Generator::new(model),
        requests,
        &settings,
        &mut |_| {},
    )?)
}

fn measure(case: &str, model: &Decoder, requests: &[Request], batch: usize) -> Result<()> {
    let mut last = None;
    let seconds = timed::seconds(3, || {
        last = Some(sample(model, requests, batch)?);
        Ok(())
    })?;
    let (peak, output) = (support::peak_mib(), last.context("a run")?);
    let tokens: usize = output.completions.iter().map(|c| c.tokens.len()).sum();
    let median = support::median(&seconds);
    let blocks = output.stats.peak_blocks * Generator::new(model).cache_spec().block_bytes;
    support::report(
        case,
        json!({
            "arithmetic": model.params().backend().products().name(),
            "tokens_per_second": tokens as f64 / median, "seconds": seconds,
            "share_of_floor": least_seconds(model, &output.stats, batch) / median,
            "cache_mib": blocks as f64 / f64::from(1 << 20), "peak_mib": peak,
            "steps": output.stats.steps, "prefill_tokens": output.stats.prefill_tokens,
        }),
    );
    Ok(())
}

/// Lower bound of the seconds: each step reads the weights or multiplies its rows by them,
/// whichever takes longer.
fn least_seconds(model: &Decoder, stats: &GenerationStats, batch: usize) -> f64 {
    let work = floor::multiply_adds(model);
    let bytes = work * size_of::<f32>() as f64;
    let rows = (stats.decode_tokens as f64 / stats.steps as f64).max(1.0);
    let kernel = model.params().backend().products();
    let step = floor::seconds(kernel, batch, work * rows, bytes);
    let prefill = floor::seconds(kernel, 2048, work * stats.prefill_tokens as f64, 0.0);
    step * stats.steps as f64 + prefill
}
