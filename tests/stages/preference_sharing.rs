//! Preference tuning of a part of the policy: adapters, or the layers above a trunk. The reference
//! is the initial policy, and the result can be PPO's policy under the same sharing.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::on_policy::{assert_start_on_policy, iterations, number};
use crate::refusal::refused;
use crate::support::{Workspace, read};

const LORA: &str = "--set dpo.lora.r=4 --set dpo.lora.target_modules=all-linear";

const ADAPTER: &str = "adapter_model.safetensors";

/// Runs a stage whose adapters the tests start from.
fn tuned_adapters(workspace: &Workspace) -> &'static str {
    let lora = "--set sft.lora.r=4 --set sft.lora.target_modules=all-linear";
    workspace.succeed(&format!("sft config.toml --set run.name=tuned {lora}"));
    "--set dpo.from=runs/tuned/sft/final"
}

/// The tensors of a file by name.
pub fn tensors(file: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file, &Device::Cpu).expect("tensors")
}

/// The largest magnitude of a tensor's elements.
pub fn largest(tensor: &Tensor) -> f32 {
    let largest = tensor.abs().and_then(|t| t.max_all()?.to_scalar());
    largest.expect("numbers")
}

/// Runs a step of DPO, checks that it starts exactly where policy and reference agree, and returns
/// the stored log-probs of the reference.
fn start(workspace: &Workspace, name: &str, flags: &str) -> Vec<u8> {
    workspace.succeed(&format!(
        "dpo config.toml --set run.name={name} --set dpo.max_steps=1 \
         --set dpo.micro_batch_tokens=200 {flags}"
    ));
    let metrics = workspace.metrics(name, "dpo");
    let (before, first) = (&metrics[0], &metrics[1]);
    for (line, of) in [(before, "eval/"), (first, "")] {
        for reward in ["chosen", "rejected", "margins", "accuracies"] {
            let found = number(line, &format!("{of}rewards/{reward}"));
            assert_eq!(found, 0.0, "{flags}: {reward}");
        }
    }
    let loss = number(before, "eval/loss");
    assert!((loss - 2f64.ln()).abs() < 1e-12, "{flags}: {loss}");
    // Micro-batches pass on their shares of the loss in `f32`.
    let loss = number(first, "train/loss");
    assert!((loss - 2f64.ln()).abs() < 1e-6, "{flags}: {loss}");
    assert!(number(first, "train/grad_norm") > 0.0, "{flags}");
    read(&workspace.stage(name, "dpo").join("reference.safetensors"))
}

/// New adapters change no bit of the policy, so its base, whole or with a frozen trunk, is the same
/// reference.
#[test]
fn new_adapters_and_frozen_layers_leave_the_reference_to_the_bit() {
    let workspace = Workspace::trained();
    let whole = start(&workspace, "whole", "");
    for (name, flags) in [
        ("adapters", LORA.to_owned()),
        (
            "upper",
            format!("{LORA} --set dpo.lora.layers_to_transform=top:1"),
        ),
        ("branch", "--set dpo.freeze_layers=1".to_owned()),
        ("body", "--set dpo.freeze_embeddings=true".to_owned()),
    ] {
        let found = start(&workspace, name, &flags);
        assert!(
            found == whole,
            "{flags}: other log-probs than the base alone"
        );
    }
}

/// As in TRL, which copies them, the reference of adapters that are trained further includes the
/// initial adapters.
#[test]
fn adapters_that_are_trained_further_are_the_reference_as_they_start() {
    let workspace = Workspace::trained();
    let from = tuned_adapters(&workspace);
    let file = |name: &str| workspace.stage(name, "dpo").join("reference.safetensors");
    start(&workspace, "further", &format!("{from} {LORA}"));
    // Without an adapter table they are merged, and all weights are trained.
    start(&workspace, "merged", from);
    start(
        &workspace,
        "base",
        "--set dpo.from=models/pretrain --set dpo.lora.r=4",
    );
    let model = workspace.model("merged", "dpo").join("model.safetensors");
    assert!(model.exists(), "no whole model");
    let [further, merged, base] =
        ["further", "merged", "base"].map(|name| tensors(&file(name))["training"].clone());
    let gap = |other: &Tensor| {
        let gap = (&further - other).and_then(|gap| gap.to_dtype(DType::F32));
        largest(&gap.expect("one shape"))
    };
    assert!(gap(&merged) < 1e-3, "{}", gap(&merged));
    assert!(gap(&base) > 1.0, "{}", gap(&base));
    refused(
        &workspace,
        &format!("dpo config.toml --set run.name=other {from} --set dpo.lora.r=8"),
        &[
            "[dpo.lora] continues the adapter in ",
            "runs/tuned/sft/final",
        ],
    );
}

#[test]
fn adapters_alone_learn() {
    let workspace = Workspace::trained();
    let flags = format!("{LORA} --set dpo.learning_rate=1e-2");
    workspace.succeed(&format!("dpo config.toml {flags}"));
    let metrics = workspace.metrics("trial", "dpo");
    let (before, after) = (&metrics[0], metrics.last().expect("a line"));
    let margin = |line| number(line, "eval/rewards/margins");
    assert!(margin(after) > margin(before) + 0.1, "{after:?}");
    assert!(number(after, "eval/rewards/accuracies") > 0.95, "{after:?}");
    let folder = workspace.model("trial", "dpo");
    assert!(!folder.join("model.safetensors").exists());
    let left = tensors(&folder.join(ADAPTER));
    assert_eq!(left.len(), 2 * 2 * 7);
    for (name, tensor) in &left {
        assert!(name.contains("lora_") && largest(tensor) > 0.0, "{name}");
    }
    // The note holds the fingerprint of the base as training left it in memory; loading the
    // adapters on the base's file compares the two.
    workspace.succeed(&format!(
        "generate --model {} --prompts prompts.jsonl --out out.jsonl --max-new-tokens 4",
        folder.display()
    ));
    // A run that has begun cannot be continued with other adapters.
    for other in ["r=8", "lora_alpha=16.0", "layers_to_transform=top:1"] {
        refused(
            &workspace,
            &format!("dpo config.toml {flags} --set dpo.lora.{other}"),
            &["dpo.lora: ", "[dpo]", "--fresh"],
        );
    }
}

#[test]
fn frozen_weights_keep_their_bits() {
    let workspace = Workspace::trained();
    let start = tensors(&workspace.path("models/sft/model.safetensors"));
    let frozen: [(&str, &[&str]); 2] = [
        ("freeze_layers=1", &["embed_tokens", "layers.0."]),
        ("freeze_embeddings=true", &["embed_tokens"]),
    ];
    for (i, (key, parts)) in frozen.into_iter().enumerate() {
        let name = format!("frozen-{i}");
        workspace.succeed(&format!(
            "dpo config.toml --set run.name={name} --set dpo.max_steps=3 --set dpo.{key}"
        ));
        let end = tensors(&workspace.model(&name, "dpo").join("model.safetensors"));
        assert_eq!(start.len(), end.len());
        for (name, tensor) in &end {
            let step = largest(&(tensor - &start[name]).expect("one shape"));
            let is_frozen = parts.iter().any(|part| name.contains(part));
            assert_eq!(step == 0.0, is_frozen, "{key}: {name} moved by {step}");
        }
    }
    refused(
        &workspace,
        "dpo config.toml --set dpo.freeze_layers=3",
        &["stage dpo", "dpo.freeze_layers is 3", "2 layers"],
    );
}

/// The policy brings its base and its adapters; the reward model's adapters are on the same base.
#[test]
fn adapters_are_tuned_further_by_ppo() {
    let workspace = Workspace::trained();
    workspace.succeed(&format!("dpo config.toml --set run.name=tuned {LORA}"));
    workspace.succeed("reward config.toml --set reward.lora.r=4");
    let share = "--set ppo.share=adapter --set ppo.from=runs/tuned/dpo/final \
                 --set ppo.reward_model=runs/trial/reward/final";
    let lines = iterations(&workspace, "last", share);
    assert_start_on_policy(&lines, share);
    let [before, after] = [
        workspace.model("tuned", "dpo"),
        workspace.model("last", "ppo"),
    ]
    .map(|folder| tensors(&folder.join(ADAPTER)));
    assert_eq!(before.len(), after.len());
    let moved = |(name, tensor): (&String, &Tensor)| {
        largest(&(tensor - &after[name]).expect("one shape")) > 0.0
    };
    assert!(before.iter().all(moved));
}

/// Policy and reward model are branches on a trunk that neither of them has trained.
#[test]
fn a_branch_is_tuned_further_by_ppo() {
    let workspace = Workspace::trained();
    workspace.succeed("dpo config.toml --set run.name=branch --set dpo.freeze_layers=1");
    workspace.succeed("dpo config.toml --set run.name=whole");
    workspace.succeed("reward config.toml --set reward.freeze_layers=1");
    let share = |run: &str| {
        format!(
            "--set ppo.share=trunk --set ppo.trunk_layers=1 --set ppo.from=runs/{run}/dpo/final \
             --set ppo.reward_model=runs/trial/reward/final"
        )
    };
    let lines = iterations(&workspace, "last", &share("branch"));
    assert_start_on_policy(&lines, "a branch");
    refused(
        &workspace,
        &format!("ppo config.toml --set run.name=moved {}", share("whole")),
        &[
            "runs/trial/reward/final",
            "fingerprint",
            "with freeze_layers = 1",
        ],
    );
}
