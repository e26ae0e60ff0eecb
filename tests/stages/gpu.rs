//! Stages on a GPU, which is the emulated one unless `COLLIMATE_TEST_DEVICE` names another: the
//! weights of the CPU after a few steps, samples on policy, and roles that share.

use crate::on_policy::{iterations, number};
use crate::sharing::{adapters, tensors, trunk};
use crate::support::Workspace;

/// The flag that selects the GPU.
pub fn gpu() -> String {
    let device = std::env::var("COLLIMATE_TEST_DEVICE").unwrap_or("emulated".to_owned());
    format!("--set run.device={device}")
}

/// Length of the distance of all weights of two models together.
fn distance(workspace: &Workspace, a: &str, b: &str) -> f64 {
    let [a, b] = [a, b].map(|file| tensors(&workspace.path(file)));
    assert_eq!(a.len(), b.len());
    let squares = a.iter().map(|(name, a)| {
        let difference = (a - &b[name]).and_then(|d| d.sqr()?.sum_all()?.to_scalar::<f32>());
        f64::from(difference.expect("tensors of one shape"))
    });
    squares.sum::<f64>().sqrt()
}

/// Runs a stage on the CPU and on the GPU, and asserts that the weights have moved and are the
/// same, but for one part in `parts` of the way.
fn assert_same_way(workspace: &Workspace, stage: &str, from: &str, flags: &str, parts: f64) {
    for (name, device) in [("cpu", String::new()), ("gpu", gpu())] {
        workspace.succeed(&format!(
            "{stage} config.toml --set run.name={name} --set {stage}.max_steps=4 {flags} {device}"
        ));
    }
    let [cpu, gpu] =
        ["cpu", "gpu"].map(|run| format!("runs/{run}/{stage}/final/model.safetensors"));
    let (way, gap) = (
        distance(workspace, from, &cpu),
        distance(workspace, &cpu, &gpu),
    );
    assert!(way > 1e-3, "{stage} moved by {way}");
    assert!(
        gap * parts < way,
        "{stage}: {gap} between the devices, of a way of {way}"
    );
}

#[test]
fn supervised_stages_move_the_weights_as_on_the_cpu() {
    let workspace = Workspace::trained();
    let sft = "models/sft/model.safetensors";
    assert_same_way(
        &workspace,
        "sft",
        "models/pretrain/model.safetensors",
        "",
        300.0,
    );
    assert_same_way(&workspace, "dpo", sft, "", 300.0);
}

#[test]
fn ppo_moves_the_weights_as_on_the_cpu() {
    let workspace = Workspace::trained();
    let flags = "--set ppo.top_k=24 --set ppo.top_p=0.95";
    assert_same_way(
        &workspace,
        "ppo",
        "models/sft/model.safetensors",
        flags,
        100.0,
    );
}

#[test]
fn ppo_starts_on_policy_whatever_is_shared() {
    let workspace = Workspace::trained();
    let shares = [
        ("whole", String::new()),
        ("trunk", trunk(&workspace)),
        ("adapter", adapters(&workspace, "top:1")),
    ];
    for (name, share) in shares {
        let lines = iterations(
            &workspace,
            name,
            &format!("{share} --set ppo.max_steps=2 {}", gpu()),
        );
        for line in &lines {
            // Decoding sums attention in another order than the training forward pass.
            assert!(
                number(line, "rollout/log_prob_max_dev") < 1e-4,
                "{name}: {line:?}"
            );
            assert_eq!(
                number(line, "policy/first_ratio_max_dev"),
                0.0,
                "{name}: {line:?}"
            );
            assert!(number(line, "policy/approx_kl") > 0.0, "{name}: {line:?}");
        }
    }
}
