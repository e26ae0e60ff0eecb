//! What the benches share: the model that the peers are timed with, and how a case is reported.

use std::time::Instant;

use candle_core::Device;
use collimate::model::Decoder;
use collimate::model::config::{DecoderConfig, Family, Geometry, Head};
use collimate::model::hf_config::HfConfig;
use collimate::ops::param::Training;

/// glibc gives large blocks back to the kernel; the binary runs with this allocator too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tokens of the `tiny6` vocabulary.
pub const VOCABULARY: u32 = 4096;

/// `tiny6`: a Llama of hidden size 256 with 6 layers and random weights.
pub fn tiny6() -> anyhow::Result<Decoder> {
    let sizes = Geometry {
        hidden_size: 256,
        intermediate_size: 688,
        num_hidden_layers: 6,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        head_dim: None,
        vocab_size: VOCABULARY as usize,
        max_position_embeddings: 1024,
    };
    let mut config = DecoderConfig::from_scratch(Family::Llama, &sizes)?;
    config.head = Head::LanguageModel;
    config.tie_word_embeddings = false;
    Ok(Decoder::fresh(
        HfConfig::new(config),
        0,
        |_| Training::Trained,
        &Device::Cpu,
    )?)
}

/// Runs `work` once to warm up and three times for the median, on the pool as the engine does; prints a line and a JSON line.
pub fn report(
    case: &str,
    tokens: usize,
    mut work: impl FnMut() -> anyhow::Result<()> + Send,
) -> anyhow::Result<()> {
    if std::env::var_os("PROFILE").is_some() {
        collimate::ops::profile::enable();
    }
    let mut seconds = rayon::scope(|_| {
        work()?;
        let timed = |_| {
            let start = Instant::now();
            work().map(|()| start.elapsed().as_secs_f64())
        };
        (0..3).map(timed).collect::<anyhow::Result<Vec<f64>>>()
    })?;
    for ((part, name), total) in collimate::ops::profile::take() {
        println!(
            "  {part:>8} {name:<24} {:>6} calls {:>9.2} ms {:>9.1} MB",
            total.calls / 4,
            total.time.as_secs_f64() * 250.0,
            total.bytes as f64 / 4e6
        );
    }
    seconds.sort_by(f64::total_cmp);
    let rate = tokens as f64 / seconds[1];
    let peak = collimate::train::memory::peak_bytes().unwrap_or(0);
    println!(
        "{case:<40} {rate:>10.0} tok/s   {:>7.1} MiB peak",
        peak as f64 / f64::from(1 << 20)
    );
    println!(
        "{}",
        serde_json::json!({"case": case, "tokens_per_second": rate, "seconds": seconds, "peak_bytes": peak})
    );
    Ok(())
}

/// SmolLM2-135M-Instruct with all parameters trained, if `models/smollm2-135m` is there.
pub fn smollm2() -> anyhow::Result<Option<Decoder>> {
    let folder = std::path::Path::new("models/smollm2-135m");
    if !folder.exists() {
        return Ok(None);
    }
    let train = |_: &_| Training::Trained;
    Ok(Some(Decoder::load(
        folder,
        Head::LanguageModel,
        0,
        train,
        &Device::Cpu,
    )?))
}
