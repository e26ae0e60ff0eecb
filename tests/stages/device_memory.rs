//! Memory of the emulated GPU against the plan, stages for which it is too small, and what a GPU
//! refuses before a stage begins.

use collimate::config::Device;
use collimate::model::Decoder;
use collimate::model::config::Head;
use collimate::model::generator::Generator;
use collimate::ops::backend::Backend;
use collimate::ops::param::Trainability;
use collimate::roles::RoleTensors;
use collimate::stages::plan::generation::{PromptBatch, reserve};
use collimate::train::optimizer::{AdamW, AdamWConfig};
use kernels::device::emulator::Order;
use rollout::{CacheBudget, LastToken, Model};

use crate::on_policy::number;
use crate::support::{Ended, Workspace};

const GPU: &str = "--set run.device=emulated";

/// Runs PPO on a GPU of `bytes` of memory.
fn ppo_within(workspace: &Workspace, bytes: u64, flags: &str) -> Ended {
    let mut command = workspace.command(&format!("ppo config.toml {flags} {GPU}"));
    let output = command.env("COLLIMATE_EMULATED_BYTES", bytes.to_string());
    Ended::of(output.output().expect("the binary"))
}

#[test]
fn too_little_memory_names_its_use_and_loses_nothing() {
    let workspace = Workspace::trained();
    let flags = "--set ppo.max_steps=6 --set ppo.save_steps=1 --set ppo.eval_steps=0";
    workspace.succeed(&format!(
        "ppo config.toml --set run.name=whole {flags} {GPU}"
    ));

    let peaks = |run| -> Vec<u64> {
        let mut lines = workspace.metrics(run, "ppo");
        lines.retain(|line| number(line, "step") > 0.0);
        let peak = |line| number(line, "memory/device_peak_bytes") as u64;
        lines.iter().map(peak).collect()
    };
    let whole = peaks("whole");

    // Less than the weights take.
    let small = ppo_within(&workspace, 10_000, &format!("{flags} --set run.name=small"));
    small.assert_refused(&["stage ppo needs", "the GPU has 0.0 GiB"]);

    // The first iteration with a greater peak than those before it.
    let later = (1..whole.len()).find(|&i| whole[i] > whole[0]);
    let later = later.expect("an iteration that needs more than the first");
    let limited = format!("{flags} --set run.name=limited");
    let ended = ppo_within(&workspace, whole[later] - 1, &limited);
    ended.assert_refused(&[
        "stage ppo",
        "of device memory at once",
        "are free",
        "lower ppo.",
        "share weights",
    ]);
    assert_eq!(peaks("limited").len(), later);
    workspace.succeed(&format!("ppo config.toml {limited} {GPU}"));
    assert_eq!(
        workspace.weights("limited", "ppo"),
        workspace.weights("whole", "ppo")
    );
}

#[test]
fn a_plan_has_the_bytes_that_the_device_holds() {
    let workspace = Workspace::trained();
    let backend = Backend::emulated(Order::Forward);
    let held = || {
        backend
            .memory()
            .expect("a device")
            .expect("a GPU")
            .allocated
    };

    let upper = |name: &str| match name.contains("layers.0") || name.contains("embed") {
        true => Trainability::Frozen,
        false => Trainability::Trained,
    };
    let model = workspace.path("models/sft");
    let head = Head::LanguageModel;
    let model = Decoder::load(&model, head, 0, |spec| upper(&spec.name), &backend);
    let model = model.expect("a model");
    let planned = RoleTensors::whole(model.decoder_config(), |spec| upper(&spec.name));
    assert!(planned.gradients() > 0 && planned.gradients() < planned.weights());
    assert_eq!(held(), planned.weights() + planned.gradients());

    let constants = AdamWConfig {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
    };
    let _optimizer = AdamW::new(model.params(), constants).expect("moments");
    assert_eq!(held(), planned.bytes());

    let prompts = PromptBatch {
        count: 5,
        tokens: 9,
        samples: 2,
        max_new_tokens: 11,
        last_token: LastToken::Read,
    };
    let budget = CacheBudget::Unlimited;
    let cache = reserve(model.decoder_config(), prompts, 4, budget, Device::Emulated);
    let cache = cache.expect("a cache");
    let mut generator = Generator::new(&model);
    generator.reserve(cache.blocks).expect("room");
    assert_eq!(held(), planned.bytes() + cache.bytes);
}

#[test]
fn heads_without_a_kernel_are_refused_before_a_stage() {
    let workspace = Workspace::new();
    let sizes = "--set model.hidden_size=36 --set model.num_attention_heads=6";
    let says = [
        "head_dim",
        "is 6",
        "multiples of 4 up to 256",
        "run.device = \"cpu\"",
    ];
    for command in ["plan", "run", "pretrain"] {
        let ended = workspace.run(&format!("{command} config.toml {sizes} {GPU}"));
        ended.assert_refused(&says);
        ended.assert_refused(&["[model]"]);
    }
    workspace.succeed(&format!(
        "pretrain config.toml {sizes} --set pretrain.max_steps=1"
    ));
    let from = "--set sft.from=runs/trial/pretrain/final --set run.name=next";
    let ended = workspace.run(&format!("sft config.toml {from} {GPU}"));
    ended.assert_refused(&["stage sft", "from = ", "final/config.json"]);
    ended.assert_refused(&says);
}

#[test]
fn a_plan_beyond_the_device_is_refused() {
    let workspace = Workspace::trained();
    let mut command = workspace.command(&format!("plan config.toml {GPU}"));
    let ended = command.env("COLLIMATE_EMULATED_BYTES", "100000");
    let ended = Ended::of(ended.output().expect("the binary"));
    ended.assert_refused(&["of memory at once, and the GPU has", "micro_batch_tokens"]);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_so() {
    let ended = Workspace::trained().run("sft config.toml --set run.device=cuda:0");
    ended.assert_refused(&[
        "run.device = \"cuda:0\"",
        "built without CUDA",
        "cargo build --release --features cuda",
    ]);
}
