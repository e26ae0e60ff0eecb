//! Fresh weights: a function of the seed and the tensor's name.

use kernels::random::Key;
use kernels::random::rand_distr::{Distribution, StandardNormal, StandardUniform};

use crate::random::Purpose;
use rayon::prelude::*;

use super::config::{Init, TensorSpec};

/// Number of values that share a random stream; the streams of a tensor are drawn in parallel.
const CHUNK: usize = 1 << 16;

/// Initial values of the tensor `spec`.
pub fn fresh(spec: &TensorSpec, seed: u64) -> Vec<f32> {
    match spec.init {
        Init::Ones => vec![1.0; spec.numel()],
        Init::Zeros => vec![0.0; spec.numel()],
        Init::Normal { std } => {
            let value = StandardNormal.map(|normal: f64| (normal * std) as f32);
            draw(spec, seed, value)
        }
        Init::Uniform { bound } => {
            let value = StandardUniform.map(|unit: f64| ((2.0 * unit - 1.0) * bound) as f32);
            draw(spec, seed, value)
        }
    }
}

/// Independent draws from `distribution`, one for each element.
fn draw(spec: &TensorSpec, seed: u64, distribution: impl Distribution<f32> + Sync) -> Vec<f32> {
    let key = Key::new(seed, Purpose::Init);
    let name = u64::from(crc32fast::hash(spec.name.as_bytes()));
    let mut values = vec![0f32; spec.numel()];
    let chunks = values.par_chunks_mut(CHUNK).enumerate();
    chunks.for_each(|(index, chunk)| {
        let mut stream = key.stream(name, index as u64);
        chunk.fill_with(|| distribution.sample(&mut stream));
    });
    values
}
