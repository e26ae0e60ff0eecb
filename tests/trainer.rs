//! Whole trainings against PyTorch: the final weights of tiny models, and the metrics logged on the
//! way.
//!
//! `tests/golden/make_trainer.py` computes both in `float64` from papers and formulas, with a
//! decoder, an optimizer, losses, estimators, an order of records and a sampler of its own. Several
//! epochs, iterations and minibatches, sequences of different lengths, active clips: these tests
//! show what single operations cannot, that the right values reach the right step.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Largest distance of a weight from that in `float64`. Adam divides by the root of the second
/// moment, so the rounding of `f32` (6e-8 for values around 1) grows where a gradient is small
/// compared with its summands. The largest measured distance is 4e-6, and training moves weights by
/// 2e-2 to 6e-2.
const WEIGHT: f32 = 3e-5;

/// Largest distance of a logged number, relative to its size or to 1: sums of some hundred `f32`
/// under weights that differ as above.
const METRIC: f64 = 1e-4;

/// Metadata of a case beside its weights.
#[derive(Deserialize)]
struct Golden {
    stage: String,
    /// Values of each metric, step by step.
    metrics: BTreeMap<String, Vec<f64>>,
}

/// A folder with the models, data and configurations of all cases, and the results of a run.
struct Case {
    folder: tempfile::TempDir,
    name: &'static str,
    golden: Golden,
}

type Tensors = BTreeMap<String, Vec<f32>>;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/trainer")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy(&path, &target),
            false => {
                fs::copy(&path, &target).expect("a writable folder");
            }
        }
    }
}

fn tensors(file: &Path) -> Tensors {
    let loaded = candle_core::safetensors::load(file, &Device::Cpu).expect("tensors");
    let values = |tensor: Tensor| tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32");
    let tensors = loaded.into_iter();
    tensors
        .map(|(name, tensor)| (name, values(tensor)))
        .collect()
}

/// Largest distance between two models' values, and the tensor that it is in.
fn distance(found: &Tensors, expected: &Tensors) -> (f32, String) {
    let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    let mut largest = (0.0, String::new());
    for (name, values) in expected {
        assert_eq!(found[name].len(), values.len(), "{name}");
        for (a, b) in found[name].iter().zip(values) {
            let gap = (a - b).abs();
            // NaN counts as the largest distance.
            if gap.is_nan() || gap > largest.0 {
                largest = (gap, name.clone());
            }
        }
    }
    largest
}

impl Case {
    /// Runs the stage of a case to its end.
    fn run(name: &'static str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        copy(&golden(), folder.path());
        let text = fs::read(golden().join(format!("{name}.json"))).expect("a case");
        let golden: Golden = serde_json::from_slice(&text).expect("a case");
        let output = Command::new(env!("CARGO_BIN_EXE_collimate"))
            .args([&golden.stage, &format!("{name}.toml")])
            .current_dir(folder.path())
            .output()
            .expect("the binary");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        Self {
            folder,
            name,
            golden,
        }
    }

    fn left(&self, file: &str) -> PathBuf {
        let stage = self
            .folder
            .path()
            .join("runs/trial")
            .join(&self.golden.stage);
        stage.join(file)
    }

    /// Asserts that the weights are PyTorch's, and that they have moved much further than the
    /// tolerance.
    fn assert_weights(&self) {
        let found = tensors(&self.left("final/model.safetensors"));
        let expected = tensors(&golden().join(format!("{}.safetensors", self.name)));
        let start = match self.golden.stage.as_str() {
            "reward" => "scorer",
            _ => "policy",
        };
        let start = tensors(&golden().join(start).join("model.safetensors"));
        let (moved, _) = distance(&start, &expected);
        assert!(moved > 300.0 * WEIGHT, "{} moved by {moved}", self.name);
        let (gap, place) = distance(&found, &expected);
        eprintln!("{}: {gap:.1e} of {moved:.1e}", self.name);
        assert!(gap <= WEIGHT, "{}: {gap} in {place}", self.name);
    }

    /// Asserts that the logged metrics are PyTorch's.
    fn assert_metrics(&self) {
        let text = fs::read_to_string(self.left("metrics.jsonl")).expect("a log");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let lines: Vec<Map<String, Value>> = lines.collect();
        let steps = lines.iter().filter(|line| line["step"].as_u64() > Some(0));
        let steps: Vec<_> = steps.collect();
        for (metric, expected) in &self.golden.metrics {
            assert_eq!(steps.len(), expected.len(), "{}", self.name);
            for (line, expected) in steps.iter().zip(expected) {
                let found = line.get(metric).and_then(Value::as_f64);
                let found = found.unwrap_or_else(|| panic!("{}: no {metric}", self.name));
                let near = (found - expected).abs() <= METRIC * expected.abs().max(1.0);
                assert!(near, "{}: {metric} {found}, not {expected}", self.name);
            }
        }
    }

    /// Asserts that this metric is above a limit in some step.
    fn assert_acts(&self, metric: &str, limit: f64) {
        let acts = self.golden.metrics[metric]
            .iter()
            .any(|&value| value > limit);
        assert!(acts, "{}: {metric}", self.name);
    }
}

fn check(name: &'static str) -> Case {
    let case = Case::run(name);
    case.assert_metrics();
    case.assert_weights();
    case
}

/// Checks cases of a supervised stage whose gradients are clipped.
fn check_supervised(names: &[&'static str]) {
    for name in names {
        check(name).assert_acts("train/grad_norm", 0.5);
    }
}

/// Checks cases of PPO without a critic.
fn check_without_critic(names: &[&'static str]) {
    for name in names {
        let case = check(name);
        case.assert_acts("policy/clip_fraction", 0.0);
        assert!(!case.golden.metrics.contains_key("loss/value"));
    }
}

#[test]
fn pretraining_and_fine_tuning_end_in_pytorch_s_weights() {
    check_supervised(&["pretrain", "sft", "sft_cosine"]);
}

#[test]
fn reward_models_end_in_pytorch_s_weights() {
    check_supervised(&["reward"]);
}

#[test]
fn preference_tuning_ends_in_pytorch_s_weights() {
    check_supervised(&["dpo", "ipo", "simpo", "orpo"]);
}

#[test]
fn ppo_ends_in_pytorch_s_weights() {
    for name in ["gae", "gae_adaptive"] {
        let case = check(name);
        case.assert_acts("policy/clip_fraction", 0.0);
        case.assert_acts("value/clip_fraction", 0.0);
    }
}

#[test]
fn group_estimators_end_in_pytorch_s_weights() {
    check_without_critic(&["grpo", "dr_grpo", "rloo"]);
}

#[test]
fn a_cut_distribution_ends_in_pytorch_s_weights() {
    check_without_critic(&["rloo_cut"]);
}

#[test]
fn other_estimators_end_in_pytorch_s_weights() {
    check_without_critic(&["reinforce_plus_plus", "remax"]);
}
