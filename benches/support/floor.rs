//! The lower bound that a measured time is compared with.

use std::time::Instant;

use collimate::model::Decoder;
use kernels::host::pool;
use kernels::host::product::{Matrix, Panels, ProductKernel, Weight, product};

/// Multiply-adds per token in the weight matrices: all but the embedding, unless a tied head uses
/// it as a matrix.
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

/// Seconds that the machine takes at least: for so many multiply-adds at the rate of our product
/// with `rows` rows, or for reading so many bytes, whichever is longer.
pub fn seconds(kernel: ProductKernel, rows: usize, multiply_adds: f64, bytes: f64) -> f64 {
    (multiply_adds / multiply_rate(kernel, rows)).max(bytes / read_rate())
}

/// Lower bound of the seconds for so many multiply-adds, at the rate of the engine's product with
/// `rows` rows, or for reading so many bytes, whichever takes longer.
fn multiply_rate(kernel: ProductKernel, rows: usize) -> f64 {
    let (k, n) = (576, 1536);
    let (x, weight) = (vec![0.5; rows * k], vec![0.25; n * k]);
    let panels = Panels::pack(kernel, Matrix::new(&weight, n, k, k));
    let repeats = 4_000_000_000 / (rows * k * n) + 1;
    let best = best_of(5, || {
        for _ in 0..repeats {
            std::hint::black_box(product(
                kernel,
                Matrix::new(&x, rows, k, k),
                &[Weight::Panels(&panels)],
            ));
        }
    });
    (repeats * rows * k * n) as f64 / best
}

/// Bytes per second at which all threads together read one gigabyte.
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
