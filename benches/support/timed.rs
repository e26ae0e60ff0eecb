//! What the benches of single operations share: models, timing, and the floor that a time is held against.

use std::time::Instant;

use anyhow::Result;
use candle_core::Device;
use collimate::model::Decoder;
use collimate::model::config::Head;
use collimate::ops::param::Training;
use collimate::ops::pool;
use collimate::ops::product::{Matrix, Panels, Weight, product};

use crate::support::{SMOLLM2, TINY6, random};

/// The model that a case's name asks for.
pub fn model(name: &str, training: Training) -> Result<Decoder> {
    if !name.contains("smollm2") {
        return random(&TINY6, Head::LanguageModel, false, training);
    }
    let folder = std::path::Path::new(SMOLLM2);
    Ok(Decoder::load(
        folder,
        Head::LanguageModel,
        0,
        |_| training,
        &Device::Cpu,
    )?)
}

/// Multiply-adds that a token costs in the matrices: all of them but the embedding, which a tied head uses as a matrix too.
pub fn multiply_adds(model: &Decoder) -> f64 {
    let config = model.decoder_config();
    let matrices = model.params().iter().filter(|p| p.dims().len() == 2);
    let all: usize = matrices.map(|p| p.value().elem_count()).sum();
    let embedding = config.vocab_size * config.hidden_size;
    match config.tie_word_embeddings {
        true => all as f64,
        false => (all - embedding) as f64,
    }
}

/// Seconds of `count` runs of `work` after one to warm up, in ascending order.
pub fn seconds(count: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    work()?;
    let timed = |_| {
        let start = Instant::now();
        work().map(|()| start.elapsed().as_secs_f64())
    };
    let mut seconds: Vec<f64> = (0..count).map(timed).collect::<Result<_>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

/// Seconds that the machine takes at least: for so many multiply-adds at the rate of our product with `rows` rows, or for reading so
/// many bytes, whichever is longer.
pub fn floor_seconds(rows: usize, multiply_adds: f64, bytes: f64) -> f64 {
    (multiply_adds / multiply_rate(rows)).max(bytes / read_rate())
}

/// Multiply-adds a second of our product with `rows` rows and a weight that the caches hold.
fn multiply_rate(rows: usize) -> f64 {
    let (k, n) = (576, 1536);
    let (x, weight) = (vec![0.5; rows * k], vec![0.25; n * k]);
    let panels = Panels::pack(&weight, n, k);
    let repeats = 4_000_000_000 / (rows * k * n) + 1;
    let best = best_of(5, || {
        for _ in 0..repeats {
            std::hint::black_box(product(
                Matrix::new(&x, rows, k, k),
                &[Weight::Panels(&panels)],
            ));
        }
    });
    (repeats * rows * k * n) as f64 / best
}

/// Bytes a second that all threads together read of a gigabyte.
fn read_rate() -> f64 {
    let data = vec![1f32; 1 << 28];
    let best = best_of(3, || {
        let sums = pool::map(data.chunks(1 << 20), |chunk| {
            let mut lanes = [0f32; 64];
            for part in chunk.as_chunks::<64>().0 {
                lanes.iter_mut().zip(part).for_each(|(l, x)| *l += x);
            }
            lanes.iter().sum::<f32>()
        });
        std::hint::black_box(sums);
    });
    (data.len() * size_of::<f32>()) as f64 / best
}

fn best_of(count: usize, mut work: impl FnMut()) -> f64 {
    let timed = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..count).map(timed).fold(f64::INFINITY, f64::min)
}
