//! Roles that share layers: as exact as roles that own everything, and what is shared never moves.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use crate::on_policy::{assert_start_on_policy, iterations, number};
use crate::refusal::refused;
use crate::support::{Line, Workspace, lines, read};

/// All settings that reshape sampling, and a cache so small that sequences are preempted and read
/// again.
const BENT: &str = "--set ppo.temperature=0.7 --set ppo.top_k=24 \
                    --set ppo.num_samples_per_prompt=4 --set ppo.cache_tokens=96";

/// Makes a reward model on the policy's lowest layer and returns the PPO flags that share it.
pub fn trunk(workspace: &Workspace) -> String {
    workspace.succeed("reward config.toml --set run.name=branch --set reward.freeze_layers=1");
    "--set ppo.share=trunk --set ppo.trunk_layers=1 --set ppo.reward_model=runs/branch/reward/final"
        .to_owned()
}

/// Makes a reward model of adapters and returns the PPO flags with adapters on these layers.
pub fn adapters(workspace: &Workspace, layers: &str) -> String {
    let lora = |table: &str| {
        format!(
            "--set {table}.lora.r=4 --set {table}.lora.target_modules=all-linear \
             --set {table}.lora.layers_to_transform={layers}"
        )
    };
    let name = format!("adapter-{}", layers.replace(':', "-"));
    let reward = lora("reward");
    workspace.succeed(&format!(
        "reward config.toml --set run.name={name} {reward}"
    ));
    format!(
        "--set ppo.share=adapter --set ppo.reward_model=runs/{name}/reward/final {}",
        lora("ppo")
    )
}

pub fn tensors(file: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file, &Device::Cpu).expect("tensors")
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>());
    values.expect("f32").iter().map(|x| x.to_bits()).collect()
}

/// Number of layers and fingerprint of the trunk recorded in a weights file.
fn noted_trunk(file: &Path) -> [String; 2] {
    let (bytes, keys) = (read(file), ["trunk_layers", "trunk_fingerprint"]);
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let notes = header.metadata().as_ref().expect("notes");
    keys.map(|key| notes[key].clone())
}

/// Names of a role's tensors in the run's newest checkpoint.
fn saved(workspace: &Workspace, run: &str, role: &str) -> Vec<String> {
    let folder = workspace.stage(run, "ppo").join("checkpoints");
    let checkpoints = fs::read_dir(folder).expect("checkpoints");
    let newest = checkpoints.map(|e| e.expect("an entry").path()).max();
    let file = newest.expect("one").join(format!("{role}.safetensors"));
    tensors(&file).into_keys().collect()
}

/// The metrics of an iteration that depend only on the initial weights.
fn start(line: &Line) -> Vec<u64> {
    let names = [
        "objective/scores",
        "objective/entropy",
        "objective/rlhf_reward",
        "rollout/length_mean",
        "value/explained_variance",
    ];
    names.map(|name| number(line, name).to_bits()).into()
}

/// Runs the same models without sharing: sharing must not change the metrics.
fn alone(workspace: &Workspace, name: &str, reward: &str, flags: &str) -> Line {
    let reward = format!("--set ppo.reward_model={reward}");
    iterations(
        workspace,
        name,
        &format!("{reward} {flags} --set ppo.max_steps=1"),
    )
    .remove(0)
}

#[test]
fn a_trunk_is_exact_and_stays_as_it_is() {
    let workspace = Workspace::trained();
    let share = trunk(&workspace);
    for (name, flags) in [("plain", ""), ("bent", BENT)] {
        let lines = iterations(&workspace, name, &format!("{share} {flags}"));
        assert_start_on_policy(&lines, flags);
        let whole = alone(
            &workspace,
            &format!("{name}-whole"),
            "runs/branch/reward/final",
            flags,
        );
        assert_eq!(start(&lines[0]), start(&whole), "{flags}");
    }
    let before = tensors(&workspace.path("models/sft/model.safetensors"));
    let after = tensors(&workspace.model("plain", "ppo").join("model.safetensors"));
    assert_eq!(before.len(), after.len());
    for (name, tensor) in &before {
        let in_trunk = name.contains("layers.0.") || name.contains("embed_tokens");
        assert_eq!(bits(tensor) == bits(&after[name]), in_trunk, "{name}");
    }
    // Reward model and policy record the same trunk.
    let [reward, policy] = ["branch", "plain"].map(|run| {
        let stage = if run == "branch" { "reward" } else { "ppo" };
        noted_trunk(&workspace.model(run, stage).join("model.safetensors"))
    });
    assert!(
        reward[0] == "1" && reward == policy,
        "{reward:?} {policy:?}"
    );
    for role in ["actor", "critic"] {
        let names = saved(&workspace, "plain", role);
        let of_trunk = |name: &String| name.contains("layers.0.") || name.contains("embed_tokens");
        assert!(
            !names.is_empty() && !names.iter().any(of_trunk),
            "{names:?}"
        );
    }
}

#[test]
fn adapters_are_exact_and_leave_their_base_as_it_is() {
    let workspace = Workspace::trained();
    for layers in ["top:1", "top:2"] {
        let share = adapters(&workspace, layers);
        let reward = format!("runs/adapter-{}/reward/final", layers.replace(':', "-"));
        for (kind, flags) in [("plain", ""), ("bent", BENT)] {
            let name = format!("{kind}-{}", layers.replace(':', "-"));
            let lines = iterations(&workspace, &name, &format!("{share} {flags}"));
            assert_start_on_policy(&lines, flags);
            // Merged weights are rounded, so scores of a whole model agree only up to rounding.
            let whole = alone(&workspace, &format!("{name}-whole"), &reward, flags);
            let score = |line: &Line| number(line, "objective/scores");
            let gap = (score(&lines[0]) - score(&whole)).abs();
            assert!(gap < 1e-4, "{layers} {flags}: {gap}");
            let names = saved(&workspace, &name, "actor");
            assert!(names.iter().all(|name| name.contains("lora_")), "{names:?}");
        }
    }
    let folder = workspace.model("plain-top-1", "ppo");
    let config = read(&folder.join("adapter_config.json"));
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    let base = Path::new(config["base_model_name_or_path"].as_str().expect("a path"));
    assert!(base.ends_with("models/sft"), "{}", base.display());
    assert!(folder.join("adapter_config.json").exists());
    assert!(!folder.join("model.safetensors").exists());
    // Later commands can read it as a model.
    workspace.succeed(&format!(
        "generate --model {} --prompts prompts.jsonl --out out.jsonl --max-new-tokens 4",
        folder.display()
    ));
}

/// A policy with adapters brings its base; the adapters are trained further, and the reference
/// keeps the initial ones.
#[test]
fn a_policy_of_adapters_is_tuned_further() {
    let workspace = Workspace::trained();
    let lora = "--set sft.lora.r=4 --set sft.lora.target_modules=all-linear";
    workspace.succeed(&format!("sft config.toml --set run.name=tuned {lora}"));
    // The token that fine-tuning learned to end answers with is recorded only in the adapter's
    // folder.
    let file = workspace
        .model("tuned", "sft")
        .join("generation_config.json");
    let mut generation: Value = serde_json::from_slice(&read(&file)).expect("JSON");
    generation["eos_token_id"] = json!([2, 7]);
    fs::write(&file, generation.to_string()).expect("a writable folder");
    let other = "ppo config.toml --set ppo.share=adapter --set ppo.from=runs/tuned/sft/final \
                 --set ppo.critic_from=policy --set ppo.lora.r=8";
    refused(
        &workspace,
        other,
        &[
            "[ppo.lora] continues the adapter in runs/tuned/sft/final",
            "its settings must match",
        ],
    );
    let lines = iterations(
        &workspace,
        "further",
        "--set ppo.share=adapter --set ppo.from=runs/tuned/sft/final --set ppo.critic_from=policy",
    );
    assert_start_on_policy(&lines, "adapters of the policy");
    let left = read(
        &workspace
            .model("further", "ppo")
            .join("generation_config.json"),
    );
    let left: Value = serde_json::from_slice(&left).expect("JSON");
    // Together with the EOS of the tokenizer and of the base's `config.json`.
    assert_eq!(left["eos_token_id"], json!([2, 7, 0]));
    let file = "adapter_model.safetensors";
    let before = tensors(&workspace.model("tuned", "sft").join(file));
    let after = tensors(&workspace.model("further", "ppo").join(file));
    assert_eq!(before.len(), after.len());
    assert!(before.iter().any(|(name, t)| bits(t) != bits(&after[name])));
}

/// The judge's scores before training, in a run with these flags.
fn judged(workspace: &Workspace, name: &str, flags: &str) -> Vec<f64> {
    workspace.succeed(&format!(
        "ppo config.toml --set run.name={name} --set ppo.max_steps=1 {flags}"
    ));
    let samples = lines(&workspace.stage(name, "ppo").join("samples.jsonl"));
    let first = samples.iter().filter(|sample| sample["step"] == 0);
    first.map(|sample| number(sample, "judge_score")).collect()
}

/// A judge that shares all it can, and one that shares nothing because it was trained on another
/// base, score as they do alone.
#[test]
fn a_judge_scores_the_same_whatever_it_shares() {
    let workspace = Workspace::trained();
    workspace.succeed(
        "reward config.toml --set run.name=judge --set reward.freeze_layers=1 \
         --set reward.max_steps=20",
    );
    let on_trunk = trunk(&workspace);
    for (name, judge) in [
        ("branch", "runs/judge/reward/final"),
        ("other", "models/reward"),
    ] {
        let judge = format!("--set ppo.judge_model={judge}");
        let alone = judged(&workspace, &format!("{name}-alone"), &judge);
        let shared = judged(
            &workspace,
            &format!("{name}-trunk"),
            &format!("{judge} {on_trunk}"),
        );
        assert!(alone.len() == 8 && alone == shared, "{name}");
    }
    // With rule rewards in training, only evaluations read the states of last tokens.
    let config = String::from_utf8(read(&workspace.path("config.toml"))).expect("UTF-8");
    let rule = "\n[[ppo.rewards]]\ntype = \"length\"\nmax = 6\nmargin = 4\n";
    let config = config.replace(
        "reward_model = \"models/reward\"",
        "critic_from = \"policy\"",
    );
    workspace.write("rules.toml", &(config + rule));
    let judge = "--set ppo.judge_model=runs/judge/reward/final";
    workspace.succeed(&format!(
        "ppo rules.toml --set run.name=rules {judge} --set ppo.share=trunk \
         --set ppo.trunk_layers=1 --set ppo.max_steps=2"
    ));
    let samples = lines(&workspace.stage("rules", "ppo").join("samples.jsonl"));
    let first = samples.iter().filter(|sample| sample["step"] == 0);
    let scores: Vec<f64> = first.map(|sample| number(sample, "judge_score")).collect();
    assert_eq!(scores, judged(&workspace, "again", judge));
}

/// Adapters of the reward model reach as low as the policy's, or below the roles' boundary.
#[test]
fn a_judge_of_adapters_scores_as_it_does_merged() {
    let workspace = Workspace::trained();
    let on_base = adapters(&workspace, "top:1");
    for layers in ["top:1", "top:2"] {
        let (name, lora) = (layers.replace(':', "-"), "--set reward.lora.r=2");
        workspace.succeed(&format!(
            "reward config.toml --set run.name=judge-{name} {lora} \
             --set reward.lora.layers_to_transform={layers}"
        ));
        let judge = format!("--set ppo.judge_model=runs/judge-{name}/reward/final");
        let merged = judged(&workspace, &format!("merged-{name}"), &judge);
        let shared = judged(
            &workspace,
            &format!("shared-{name}"),
            &format!("{judge} {on_base}"),
        );
        assert_eq!((merged.len(), shared.len()), (8, 8));
        let gap = |(a, b): (&f64, &f64)| (a - b).abs();
        let gaps = merged.iter().zip(&shared).map(gap);
        let gap = gaps.fold(0.0, f64::max);
        assert!(gap < 1e-4, "{layers}: {gap}");
    }
}

/// A run that is interrupted after two iterations and continued ends in the bits of an
/// uninterrupted one.
#[test]
fn sharing_survives_an_interruption() {
    let workspace = Workspace::trained();
    for (name, share) in [
        ("trunk", trunk(&workspace)),
        ("adapter", adapters(&workspace, "top:1")),
    ] {
        let run = |name: &str, steps: usize| {
            iterations(
                &workspace,
                name,
                &format!("{share} --set ppo.max_steps={steps}"),
            );
        };
        run(&format!("{name}-through"), 4);
        run(&format!("{name}-halved"), 2);
        run(&format!("{name}-halved"), 4);
        let [through, halved] =
            ["through", "halved"].map(|half| workspace.weights(&format!("{name}-{half}"), "ppo"));
        assert!(through == halved, "{name}");
    }
}

/// A branch stored in 16 bit was written with a rounded trunk, and is loaded on the same trunk.
#[test]
fn a_branch_may_be_kept_in_half_the_bits() {
    let workspace = Workspace::trained();
    for dtype in ["bfloat16", "float16"] {
        let half = format!("--set run.name={dtype} --set model.save_dtype={dtype}");
        workspace.succeed(&format!(
            "reward config.toml --set reward.freeze_layers=1 {half}"
        ));
        let share = "--set ppo.share=trunk --set ppo.trunk_layers=1 --set ppo.max_steps=2";
        let reward = format!("--set ppo.reward_model=runs/{dtype}/reward/final");
        let lines = iterations(
            &workspace,
            &format!("on-{dtype}"),
            &format!("{share} {reward}"),
        );
        assert_start_on_policy(&lines, dtype);
    }
}

#[test]
fn a_model_from_other_ground_is_refused() {
    let workspace = Workspace::trained();
    let share = "--set ppo.share=trunk --set ppo.trunk_layers=1";
    refused(
        &workspace,
        &format!("ppo config.toml {share}"),
        &["models/reward", "fingerprint", "freeze_layers = 1"],
    );
    // A branch on another trunk is recognised by its note.
    workspace.succeed(
        "reward config.toml --set run.name=elsewhere \
                       --set reward.from=models/pretrain --set reward.freeze_layers=1",
    );
    refused(
        &workspace,
        &format!("ppo config.toml {share} --set ppo.reward_model=runs/elsewhere/reward/final"),
        &[
            "runs/elsewhere/reward/final",
            "have the fingerprint",
            "those of the policy",
        ],
    );
    let many = "--set ppo.share=trunk --set ppo.trunk_layers=3";
    refused(
        &workspace,
        &format!("ppo config.toml {many}"),
        &["ppo.trunk_layers is 3", "has 2 layers"],
    );
    refused(
        &workspace,
        "ppo config.toml --set ppo.share=adapter",
        &["models/reward", "whole reward model", "ppo.critic_from"],
    );
    refused(
        &workspace,
        "reward config.toml --set reward.freeze_layers=3",
        &["reward.freeze_layers", "2 layers"],
    );
}
