//! Stages that train adapters: the files that they write, the adapters that they continue, and what
//! they refuse.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::refusal::refused;
use crate::support::{Workspace, read};

const LORA: &str = "--set sft.lora.r=4 --set sft.lora.target_modules=all-linear";

/// Name of a run whose adapters other tests start from.
const TUNED: &str = "--set run.name=tuned";

/// The tensor names of a safetensors file.
fn names(file: &Path) -> Vec<String> {
    let tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu);
    let mut names: Vec<String> = tensors.expect("tensors").into_keys().collect();
    names.sort();
    names
}

fn measured(workspace: &Workspace, stage: &str, name: &str) -> [f64; 2] {
    let metrics = workspace.metrics("trial", stage);
    let values: Vec<f64> = metrics
        .iter()
        .filter_map(|line| line.get(name)?.as_f64())
        .collect();
    [values[0], values[values.len() - 1]]
}

#[test]
fn sft_leaves_an_adapter_and_checkpoints_of_nothing_else() {
    let workspace = Workspace::trained();
    workspace.succeed(&format!("sft config.toml {LORA}"));
    let folder = workspace.model("trial", "sft");
    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "generation_config.json",
        "tokenizer.json",
    ] {
        assert!(folder.join(file).exists(), "no {file}");
    }
    // With either file, transformers would take the folder for a whole model.
    for file in ["model.safetensors", "config.json"] {
        assert!(!folder.join(file).exists(), "{file}");
    }
    let keys: Value =
        serde_json::from_slice(&read(&folder.join("adapter_config.json"))).expect("JSON");
    assert_eq!(keys["r"], 4);
    assert_eq!(keys["task_type"], "CAUSAL_LM");
    let base = Path::new(keys["base_model_name_or_path"].as_str().expect("a path"));
    assert!(base.is_absolute() && base.ends_with("models/pretrain"));

    let newest =
        fs::read_dir(workspace.stage("trial", "sft").join("checkpoints")).expect("checkpoints");
    let newest = newest
        .map(|entry| entry.expect("an entry").path())
        .max()
        .expect("one");
    for entry in fs::read_dir(newest).expect("a checkpoint") {
        let path = entry.expect("an entry").path();
        let file = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if file.ends_with(".safetensors") && !file.contains("moments") {
            let names = names(&path);
            assert_eq!(names.len(), 2 * 2 * 7, "{names:?}");
            assert!(names.iter().all(|name| name.contains("lora_")), "{names:?}");
        }
    }
    let [before, after] = measured(&workspace, "sft", "eval/loss");
    assert!(after < before - 0.1, "{before} → {after}");
}

/// Policy and reward model are adapters on one base, and PPO reads both.
#[test]
fn later_stages_read_adapters_as_models() {
    let workspace = Workspace::trained();
    workspace.succeed(&format!("sft config.toml {LORA} {TUNED}"));
    let reward = "reward config.toml --set reward.from=runs/tuned/sft/final --set reward.lora.r=4 \
                  --set reward.lora.target_modules=all-linear";
    workspace.succeed(reward);
    let folder = workspace.model("trial", "reward");
    let names = names(&folder.join("adapter_model.safetensors"));
    assert!(
        names.contains(&"base_model.model.score.weight".to_owned()),
        "{names:?}"
    );
    let keys: Value =
        serde_json::from_slice(&read(&folder.join("adapter_config.json"))).expect("JSON");
    assert!(
        keys["base_model_name_or_path"]
            .as_str()
            .expect("a path")
            .ends_with("models/pretrain")
    );
    let [before, after] = measured(&workspace, "reward", "eval/loss");
    assert!(after < before - 0.1, "{before} → {after}");
    workspace.succeed(
        "ppo config.toml --set run.name=last --set ppo.from=runs/tuned/sft/final \
         --set ppo.reward_model=runs/trial/reward/final --set ppo.max_steps=2",
    );
    assert!(
        workspace
            .model("last", "ppo")
            .join("model.safetensors")
            .exists()
    );
}

#[test]
fn adapters_that_are_trained_further_stay_as_they_are() {
    let workspace = Workspace::trained();
    workspace.succeed(&format!(
        "sft config.toml {LORA} {TUNED} --set sft.max_steps=2"
    ));
    refused(
        &workspace,
        "reward config.toml --set reward.from=runs/tuned/sft/final --set reward.lora.r=8",
        &[
            "[reward.lora] continues the adapter in ",
            "runs/tuned/sft/final",
        ],
    );
}

/// Folder of the adapters of [`fine_tuned`].
const ADAPTERS: &str = "runs/tuned/sft/final";

/// Trained models, and adapters of a fine-tuned policy that have no default setting.
fn fine_tuned() -> Workspace {
    let workspace = Workspace::trained();
    let lora = "--set sft.lora.r=4 --set sft.lora.lora_alpha=16 --set sft.lora.use_rslora=true \
                --set sft.lora.target_modules=[\"q_proj\"] \
                --set sft.lora.layers_to_transform=top:1";
    workspace.succeed(&format!(
        "sft config.toml {lora} {TUNED} --set sft.max_steps=2"
    ));
    workspace
}

/// Keys that a table leaves out are taken from the folder, in every stage that trains adapters.
#[test]
fn a_table_inherits_the_adapters_that_are_trained_further() {
    let workspace = fine_tuned();
    let inherited = |stage: &str, run: &str, flags: &str| {
        workspace.succeed(&format!(
            "{stage} config.toml --set run.name={run} --set {stage}.from={ADAPTERS} \
             --set {stage}.max_steps=1 {flags}"
        ));
        let file = workspace.model(run, stage).join("adapter_config.json");
        let keys: Value = serde_json::from_slice(&read(&file)).expect("JSON");
        let kept = [
            "r",
            "lora_alpha",
            "use_rslora",
            "target_modules",
            "layers_to_transform",
        ];
        let expected = serde_json::json!([4, 16.0, true, ["q_proj"], [1]]);
        assert_eq!(
            Value::from(kept.map(|key| keys[key].clone()).to_vec()),
            expected,
            "{stage}"
        );
    };
    inherited("sft", "sft", "--set sft.lora={}");
    inherited("dpo", "dpo", "--set dpo.lora={}");
    inherited("reward", "reward", "--set reward.lora={}");
    inherited(
        "reward",
        "same",
        "--set reward.lora.lora_alpha=16 --set reward.lora.layers_to_transform=[1]",
    );
    inherited(
        "ppo",
        "ppo",
        "--set ppo.share=adapter --set ppo.lora={} --set ppo.reward_model=runs/reward/reward/final",
    );
}

/// A key that differs from the folder's is refused with both values, by `plan` too.
#[test]
fn a_table_that_differs_from_its_adapters_is_refused() {
    let workspace = fine_tuned();
    let differences = [
        ("lora_alpha=32", "lora_alpha is 32 here, 16 there"),
        ("r=8", "r is 8 here, 4 there"),
        ("use_rslora=false", "use_rslora is false here, true there"),
        (
            "target_modules=all-linear",
            "target_modules is \"all-linear\" here, [\"q_proj\"] there",
        ),
        (
            "layers_to_transform=[0,1]",
            "layers_to_transform is [0, 1] here, [1] there",
        ),
    ];
    for (key, says) in differences {
        let from = format!("config.toml --set reward.from={ADAPTERS} --set reward.lora.{key}");
        refused(
            &workspace,
            &format!("reward {from}"),
            &[
                "[reward.lora] continues the adapter in runs/tuned/sft/final",
                says,
            ],
        );
        refused(&workspace, &format!("plan {from}"), &["reward.lora", says]);
    }
    let share = format!(
        "ppo config.toml --set ppo.share=adapter --set ppo.from={ADAPTERS} --set ppo.lora.r=8"
    );
    refused(
        &workspace,
        &share,
        &[
            "[ppo.lora] continues the adapter in runs/tuned/sft/final",
            "r is 8 here, 4 there",
        ],
    );
}

#[test]
fn targets_and_layers_that_the_model_lacks_are_named() {
    let workspace = Workspace::trained();
    for (flag, says) in [
        ("sft.lora.target_modules=[\"c_fc\"]", "`c_fc`"),
        ("sft.lora.layers_to_transform=top:3", "2 layers"),
        ("sft.lora.layers_to_transform=[2]", "2 layers"),
    ] {
        refused(
            &workspace,
            &format!("sft config.toml --set {flag}"),
            &["sft.lora", says],
        );
    }
}

/// Continuing adapters on another base is refused, since nobody would do so on purpose.
#[test]
fn a_base_that_was_changed_does_not_continue_a_stage() {
    let workspace = Workspace::trained();
    workspace.succeed(&format!(
        "sft config.toml {LORA} {TUNED} --set sft.max_steps=2"
    ));
    let reward = "reward config.toml --set reward.from=runs/tuned/sft/final --set reward.lora.r=4 \
                  --set reward.lora.target_modules=all-linear --set reward.max_steps=2";
    workspace.succeed(reward);
    let config = workspace.path("models/pretrain/config.json");
    let text = fs::read_to_string(&config).expect("a file");
    fs::write(&config, text + "\n").expect("a file");
    refused(&workspace, reward, &["reward.from", "other contents"]);
}
