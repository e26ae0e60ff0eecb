//! Fresh weights: a function of the seed and the tensor's name.

use rollout::random::{Key, Purpose};

use super::config::{Init, TensorSpec};

/// The initial values of `spec`.
pub fn fresh(spec: &TensorSpec, seed: u64) -> Vec<f32> {
    match spec.init {
        Init::Ones => vec![1.0; spec.numel()],
        Init::Zeros => vec![0.0; spec.numel()],
        Init::Normal { std } => {
            let mut draws = vec![0f64; spec.numel()];
            Key::new(seed, Purpose::Init).fill_normal(name_of(spec), &mut draws);
            draws.into_iter().map(|x| (x * std) as f32).collect()
        }
        Init::Uniform { bound } => {
            let (key, name) = (Key::new(seed, Purpose::Init), name_of(spec));
            let draw = |i| ((2.0 * key.uniform(name, i) - 1.0) * bound) as f32;
            (0..spec.numel() as u64).map(draw).collect()
        }
    }
}

fn name_of(spec: &TensorSpec) -> u64 {
    u64::from(crc32fast::hash(spec.name.as_bytes()))
}
