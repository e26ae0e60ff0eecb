//! Shared by the tests of this binary: fixtures, small models, comparisons.

use std::collections::HashMap;
use std::path::PathBuf;
#[cfg(any(feature = "emulate", feature = "cuda"))]
use std::sync::LazyLock;

use candle_core::{Device, Result, Tensor};
#[cfg(any(feature = "emulate", feature = "cuda"))]
use collimate::config::Arithmetic;
use collimate::model::Decoder;
use collimate::model::config::{DecoderConfig, Family, Geometry, Head};
use collimate::model::hf_config::HfConfig;
use collimate::ops::backend::Backend;
use collimate::ops::param::{InitialParam, ParamStore, Trainability};
use collimate::random::Purpose;
use kernels::attention::{Attention, Segments};
#[cfg(not(any(feature = "emulate", feature = "cuda")))]
use kernels::host::product::ProductKernel;
use kernels::random::Key;
use kernels::random::rand::Rng;
use kernels::random::rand_distr::StandardNormal;

pub type Anyhow<T = ()> = anyhow::Result<T>;

/// The fixture models: five families, two dialects, two naming schemes.
pub const LANGUAGE_MODELS: [&str; 9] = [
    "llama",
    "llama_old_dialect",
    "llama3_tied",
    "qwen2",
    "qwen3",
    "mistral",
    "mistral_swa",
    "gpt2",
    "gpt2_bare",
];

/// The path of devices without kernels, taken on the CPU.
pub const COMPOSED: Backend = Backend::Composed(Device::Cpu);

/// Runs a test with each product kernel that the processor can run, emulated ones included.
#[cfg(not(any(feature = "emulate", feature = "cuda")))]
pub fn with_each_kernel(test: impl Fn(&Backend) -> Anyhow) -> Anyhow {
    let mut kernels = ProductKernel::available().into_iter();
    kernels.try_for_each(|kernel| test(&Backend::Host(kernel)))
}

/// Runs a test on the device that `COLLIMATE_TEST_DEVICE` names, or else on the emulated GPU. A
/// build without GPUs runs it on the CPU.
#[cfg(any(feature = "emulate", feature = "cuda"))]
pub fn with_each_kernel(test: impl Fn(&Backend) -> Anyhow) -> Anyhow {
    static DEVICE: LazyLock<Backend> = LazyLock::new(|| {
        let name = std::env::var("COLLIMATE_TEST_DEVICE").unwrap_or("emulated".to_owned());
        let device = name.parse().expect("COLLIMATE_TEST_DEVICE");
        Backend::open(device, Arithmetic::Portable).expect("the device")
    });
    test(&DEVICE)
}

/// An attention configuration with these query heads, key and value heads, head size and window.
pub fn attention(
    (query_heads, kv_heads, head_dim, window): (usize, usize, usize, Option<usize>),
) -> Attention {
    Attention {
        query_heads,
        kv_heads,
        head_dim,
        scale: 0.25,
        window,
    }
}

pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/models")
        .join(name)
}

/// A fixture's expected tensors, and its rows without padding.
pub struct Expected {
    pub tensors: HashMap<String, Tensor>,
    pub rows: Vec<Vec<u32>>,
}

impl Expected {
    pub fn read(name: &str) -> Anyhow<Self> {
        let tensors = candle_core::safetensors::load(
            folder(name).join("expected.safetensors"),
            &Device::Cpu,
        )?;
        let ids = tensors["input_ids"].to_vec2::<i64>()?;
        let lengths = tensors["lengths"].to_vec1::<i64>()?;
        let rows = ids
            .iter()
            .zip(lengths)
            .map(|(row, n)| row[..n as usize].iter().map(|&id| id as u32).collect())
            .collect();
        Ok(Self { tensors, rows })
    }

    pub fn packed(&self) -> (Vec<u32>, Segments) {
        (
            self.rows.concat(),
            Segments::from_lengths(self.rows.iter().map(Vec::len)),
        )
    }
}

pub fn load(name: &str, head: Head, backend: &Backend) -> Anyhow<Decoder> {
    Ok(Decoder::load(
        &folder(name),
        head,
        0,
        |_| Trainability::Trained,
        backend,
    )?)
}

/// A freshly initialised Llama of these sizes.
pub fn llama(
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    head: Head,
    backend: &Backend,
) -> Anyhow<Decoder> {
    let sizes = Geometry {
        hidden_size: hidden,
        intermediate_size: hidden * 2 + 32,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim: None,
        vocab_size: vocabulary,
        max_position_embeddings: 256,
    };
    let mut config = DecoderConfig::from_scratch(Family::Llama, &sizes)?;
    config.head = head;
    config.initializer_range = 0.15;
    Ok(Decoder::fresh(
        HfConfig::new(config),
        3,
        |_| Trainability::Trained,
        backend,
    )?)
}

/// Largest difference between two equally long lists.
pub fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Independent standard normal draws, different ones for each stream.
pub fn noise(count: usize, stream: u64) -> Vec<f32> {
    let draws = Key::new(17, Purpose::Init).stream(stream, 0);
    draws.sample_iter(StandardNormal).take(count).collect()
}

/// A tensor of [`noise`].
pub fn tensor(shape: &[usize], stream: u64) -> Tensor {
    Tensor::from_vec(noise(shape.iter().product(), stream), shape, &Device::Cpu)
        .expect("shape fits")
}

/// A store of trained parameters with values from [`noise`].
pub fn store(shapes: &[(&str, &[usize])], backend: &Backend) -> Result<ParamStore> {
    let initial = shapes
        .iter()
        .enumerate()
        .map(|(i, (name, shape))| InitialParam {
            name: (*name).to_owned(),
            shape: shape.to_vec(),
            data: noise(shape.iter().product(), 100 + i as u64),
            training: Trainability::Trained,
        });
    ParamStore::new(initial.collect(), backend)
}
