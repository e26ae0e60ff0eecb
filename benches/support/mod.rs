//! What the benches share: the models that the peers are timed with, and how a case is run and reported.
//!
//! Each case runs in a process of its own, so that its peak memory is its own: a bench without arguments calls itself once a case.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use collimate::model::Decoder;
use collimate::model::config::{DecoderConfig, Family, Geometry, Head};
use collimate::model::hf_config::HfConfig;
use collimate::ops::param::Training;
use collimate::ops::pool;
use collimate::ops::product::{Matrix, Panels, Weight, product};
use serde_json::{Value, json};

/// glibc gives large blocks back to the kernel; the binary runs with this allocator too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Where SmolLM2-135M-Instruct lies, if it is there; its cases are passed over without it.
pub const SMOLLM2: &str = "models/smollm2-135m";

/// `tiny6`: a Llama of hidden size 256 with 6 layers.
pub const TINY6: Geometry = Geometry {
    hidden_size: 256,
    intermediate_size: 688,
    num_hidden_layers: 6,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    head_dim: None,
    vocab_size: 4096,
    max_position_embeddings: 4096,
};

/// A case: its name, and what runs it and reports.
pub type Case = (&'static str, fn(&str) -> Result<()>);

/// Runs the cases whose names hold one of the arguments, each in its own process.
pub fn run(cases: &[Case]) -> Result<()> {
    collimate::train::process::set_up();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == "--case"
    {
        let case = cases.iter().find(|case| case.0 == name);
        let (name, run) = case.context("no such case")?;
        return run(name);
    }
    let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let asked = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    for (name, _) in cases.iter().filter(|case| asked(case.0)) {
        if name.contains("smollm2") && !std::path::Path::new(SMOLLM2).exists() {
            eprintln!("{name}: passed over, {SMOLLM2} is not there");
            continue;
        }
        let status = Command::new(std::env::current_exe()?)
            .args(["--case", name])
            .status()?;
        if !status.success() {
            bail!("case {name} failed");
        }
    }
    Ok(())
}

/// A Llama with random weights.
pub fn random(sizes: &Geometry, head: Head, tied: bool, training: Training) -> Result<Decoder> {
    let mut config = DecoderConfig::from_scratch(Family::Llama, sizes)?;
    config.head = head;
    config.tie_word_embeddings = tied;
    Ok(Decoder::fresh(
        HfConfig::new(config),
        0,
        |_| training,
        &Device::Cpu,
    )?)
}

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

/// The middle one.
pub fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// What this machine can do at most: the multiply-adds of a second with so many rows, and the bytes that are read of memory.
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

/// Prints a line for people and a JSON line.
pub fn report(case: &str, fields: Value) {
    let number = |key: &str| fields.get(key).and_then(Value::as_f64);
    let mut line = format!("{case:<44}");
    let shown = [
        ("tokens_per_second", "tok/s"),
        ("seconds_per_iteration", "s"),
        ("milliseconds", "ms"),
        ("share_of_floor", "of the floor"),
        ("cache_mib", "MiB cache"),
        ("peak_mib", "MiB peak"),
    ];
    for (key, unit) in shown {
        if let Some(value) = number(key) {
            let digits = if value < 10.0 { 2 } else { 0 };
            line += &format!("  {value:>8.digits$} {unit}");
        }
    }
    println!("{line}");
    let mut object = json!({ "case": case, "threads": pool::threads(), "cpu": cpu() });
    if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), fields) {
        object.extend(fields);
    }
    println!("{object}");
}

/// Peak memory of this process.
pub fn peak_mib() -> f64 {
    collimate::train::memory::peak_bytes().unwrap_or(0) as f64 / f64::from(1 << 20)
}

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    name.unwrap_or("unknown")
        .trim_matches([' ', '\t', ':'])
        .to_owned()
}
