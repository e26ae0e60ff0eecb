//! The judge and a randomly initialised critic are independent of the reward model: they start with
//! other heads, and the judge reads other pairs first.

use std::path::Path;

use candle_core::{Device, Tensor};

use crate::on_policy::number;
use crate::support::{Line, Workspace, pair, records};

/// A judge with the same table as the reward model; both start from this model and have a learning
/// rate of 0.
fn workspace(from: &str) -> Workspace {
    let workspace = Workspace::trained();
    workspace.write("pairs.jsonl", &records(0, 48, pair));
    let config = std::fs::read_to_string(workspace.path("config.toml")).expect("a file");
    let (before, reward) = config.split_once("[reward]").expect("a table");
    let (reward, ppo) = reward.split_once("[ppo]").expect("a table");
    let still = reward
        .replace("5e-3", "0.0")
        .replace("max_steps = 30", "max_steps = 3")
        .replace("models/sft", from);
    let tables = format!("{before}[reward]{still}\n[judge]{still}\n[ppo]{ppo}");
    workspace.write("config.toml", &tables);
    workspace
}

fn head(file: &Path) -> Tensor {
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).expect("a model");
    tensors["score.weight"].flatten_all().expect("a tensor")
}

/// The correlation of two heads' weights.
fn correlation(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (
        a.to_vec1::<f32>().expect("f32"),
        b.to_vec1::<f32>().expect("f32"),
    );
    let product = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

#[test]
fn reward_model_judge_and_drawn_critic_begin_with_other_heads() {
    let workspace = workspace("models/sft");
    let trained = |stage: &str| {
        workspace.succeed(&format!("{stage} config.toml"));
        head(&workspace.model("trial", stage).join("model.safetensors"))
    };
    let (reward, judge) = (trained("reward"), trained("judge"));
    let still = "--set ppo.learning_rate=0.0 --set ppo.max_steps=1 --set ppo.critic_from=policy";
    workspace.succeed(&format!("ppo config.toml {still}"));
    let checkpoints = std::fs::read_dir(workspace.stage("trial", "ppo").join("checkpoints"));
    let newest = checkpoints.expect("a folder").next().expect("a checkpoint");
    let critic = head(&newest.expect("an entry").path().join("critic.safetensors"));
    for (what, a, b) in [
        ("judge", &reward, &judge),
        ("critic", &reward, &critic),
        ("both", &judge, &critic),
    ] {
        // The correlation of 32 independent weights has a standard deviation of 0.18.
        let found = correlation(a, b);
        assert!(found.abs() < 0.8, "{what}: {found}");
    }
}

/// Two stages that start from one model with one head differ only in the pairs that they read.
#[test]
fn the_judge_reads_and_holds_out_other_pairs() {
    let workspace = workspace("models/reward");
    let lines = |stage: &str| -> Vec<Line> {
        workspace.succeed(&format!("{stage} config.toml"));
        workspace.metrics("trial", stage)
    };
    let (reward, judge) = (lines("reward"), lines("judge"));
    assert_eq!((reward.len(), judge.len()), (4, 4));
    assert_ne!(
        number(&reward[0], "eval/loss"),
        number(&judge[0], "eval/loss"),
        "held out alike"
    );
    for (reward, judge) in reward[1..].iter().zip(&judge[1..]) {
        assert_ne!(
            number(reward, "train/loss"),
            number(judge, "train/loss"),
            "read alike"
        );
    }
}
