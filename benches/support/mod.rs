//! Shared by the benches: the models of the peers' cases, and how a case is run and reported.
//!
//! Each case runs in a process of its own, so that its peak memory is its own: a bench without
//! arguments starts itself once for each case.

use std::process::Command;

use anyhow::{Context, Result, bail};
use collimate::model::Decoder;
use collimate::model::config::{DecoderConfig, Family, Geometry, Head};
use collimate::model::hf_config::HfConfig;
use collimate::ops::backend::Backend;
use collimate::ops::param::Trainability;
use kernels::host::pool;
use serde_json::{Value, json};

/// glibc returns large blocks to the kernel; like the binary, the benches use this allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Folder of SmolLM2-135M-Instruct; its cases are skipped if the folder does not exist.
pub const SMOLLM2: &str = "models/smollm2-135m";

/// `tiny6`: a Llama with hidden size 256 and 6 layers.
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

/// A case: its name, and the function that runs and reports it.
pub type Case = (&'static str, fn(&str) -> Result<()>);

/// Runs the cases whose names contain one of the arguments, each in its own process.
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
pub fn random(
    sizes: &Geometry,
    head: Head,
    tied: bool,
    training: Trainability,
    backend: &Backend,
) -> Result<Decoder> {
    let mut config = DecoderConfig::from_scratch(Family::Llama, sizes)?;
    config.head = head;
    config.tie_word_embeddings = tied;
    Ok(Decoder::fresh(
        HfConfig::new(config),
        0,
        |_| training,
        backend,
    )?)
}

/// Median of a sorted slice.
pub fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// Prints a readable line and a JSON line.
pub fn report(case: &str, fields: Value) {
    let number = |key: &str| fields.get(key).and_then(Value::as_f64);
    let mut line = format!("{case:<44}");
    let shown = [
        ("tokens_per_second", "tok/s"),
        ("seconds_per_iteration", "s"),
        ("milliseconds", "ms"),
        ("share_of_floor", "of this machine's limit"),
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

/// Peak memory of this process in MiB.
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
