//! Rotary frequencies of a configuration: default, linear scaling, or Llama 3.1's scaling.

use super::config::{DecoderConfig, Position, RopeConfig, RopeScaling};
use crate::ops::rope::Rotation;

/// The rotary embedding of a decoder; `None` if its positions are learned.
pub fn rotation(config: &DecoderConfig) -> Option<Rotation> {
    match config.position {
        Position::Learned => None,
        Position::Rope(rope) => Some(Rotation::new(frequencies(rope, config.head_dim))),
    }
}

/// Inverse frequencies `theta^(−2i/d)`, in f32 as transformers computes them, then scaled.
fn frequencies(rope: RopeConfig, head_dim: usize) -> Vec<f32> {
    let base =
        (0..head_dim / 2).map(|i| 1.0 / (rope.theta as f32).powf(2.0 * i as f32 / head_dim as f32));
    match rope.scaling {
        RopeScaling::None => base.collect(),
        RopeScaling::Linear { factor } => base.map(|f| f / factor as f32).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let context = original_max_position_embeddings as f64;
            base.map(|f| {
                llama3(
                    f64::from(f),
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    context,
                ) as f32
            })
            .collect()
        }
    }
}

/// Llama 3.1's scaling of a frequency: long waves by `factor`, short ones not at all, linear
/// interpolation between.
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, context: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength < context / high {
        frequency
    } else if wavelength > context / low {
        frequency / factor
    } else {
        let smooth = (context / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}
