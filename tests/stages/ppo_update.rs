//! What shapes PPO's update, on the real loop: the terms of the actor's loss, the limits of an iteration, pretraining text, the
//! critic's warm-up. Each with what must be exact.

use std::path::PathBuf;

use crate::refusal::refused;
use crate::support::{Line, Workspace, read, records};

/// Everything that can shape an update, at once. The first two iterations train the critic alone.
const ALL: &str = "--set ppo.loss_aggregation=sequence --set ppo.dual_clip=3.0 --set ppo.cliprange_high=0.28 --set ppo.entropy_coef=0.01 \
                   --set ppo.kl_in=loss --set ppo.target_kl=0.5 --set ppo.rollback_kl_factor=4.0 --set ppo.critic_warmup=2 \
                   --set ppo.ptx_coef=0.5 --set ppo.ptx_data=mix.jsonl --set ppo.ptx_length=24 --set ppo.ptx_batch_size=3";

/// The mix of [`ALL`] alone.
const PTX: &str = "--set ppo.ptx_coef=2.0 --set ppo.ptx_data=mix.jsonl --set ppo.ptx_length=24 --set ppo.ptx_batch_size=6";

/// Trained models, and text that they have not seen.
fn workspace() -> Workspace {
    let workspace = Workspace::trained();
    let text = |i: usize| {
        let counted: Vec<String> = (i..i + 6)
            .map(|n| format!("item {n} of {}", n * n))
            .collect();
        serde_json::json!({"text": counted.join(", ")})
    };
    workspace.write("mix.jsonl", &records(0, 20, text));
    workspace
}

fn number(line: &Line, name: &str) -> f64 {
    line.get(name)
        .and_then(|value| value.as_f64())
        .unwrap_or_else(|| panic!("no number {name} in {line:?}"))
}

fn column(lines: &[Line], name: &str) -> Vec<f64> {
    lines.iter().map(|line| number(line, name)).collect()
}

/// Runs PPO under a name of its own; the lines of its iterations.
#[track_caller]
fn run(workspace: &Workspace, name: &str, flags: &str) -> Vec<Line> {
    workspace.succeed(&format!("ppo config.toml --set run.name={name} {flags}"));
    let mut lines = workspace.metrics(name, "ppo");
    lines.retain(|line| number(line, "step") > 0.0);
    lines
}

/// A file of the newest checkpoint, or of the oldest that was kept.
fn checkpoints(workspace: &Workspace, name: &str) -> Vec<PathBuf> {
    let folder = workspace.stage(name, "ppo").join("checkpoints");
    let entries = std::fs::read_dir(folder).expect("checkpoints");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_term_at_once_starts_every_iteration_on_policy() {
    for cut in [
        "",
        "--set ppo.micro_batch_tokens=64 --set ppo.top_k=24 --set ppo.temperature=0.7",
    ] {
        let workspace = workspace();
        let lines = run(&workspace, "all", &format!("{ALL} {cut}"));
        assert_eq!(lines.len(), 6);
        let (warm, trained) = lines.split_at(2);
        for line in warm {
            assert_eq!(number(line, "policy/updates"), 0.0, "{line:?}");
            assert!(number(line, "value/grad_norm") > 0.0, "{line:?}");
            for absent in [
                "policy/approx_kl",
                "policy/grad_norm",
                "loss/policy",
                "loss/ptx",
            ] {
                assert!(!line.contains_key(absent), "{absent} in {line:?}");
            }
        }
        for line in trained {
            for exact in ["policy/first_ratio_max_dev", "policy/first_approx_kl"] {
                assert_eq!(number(line, exact), 0.0, "{cut}: {exact} in {line:?}");
            }
            for present in [
                "loss/kl",
                "loss/entropy",
                "loss/ptx",
                "policy/approx_kl",
                "policy/last_approx_kl",
            ] {
                assert!(number(line, present) >= 0.0, "{cut}: {present} in {line:?}");
            }
        }
        for line in &lines {
            assert_eq!(number(line, "rollout/log_prob_max_dev"), 0.0, "{line:?}");
        }
        // Nothing moves the policy in two iterations, so the third still samples from the reference.
        let kl = column(&lines, "objective/kl");
        assert_eq!(kl[..3], [0.0; 3], "{cut}");
        assert!(kl[3..].iter().all(|&kl| kl != 0.0), "{cut}: {kl:?}");
    }
}

#[test]
fn without_a_critic_every_term_acts_too() {
    let group = "--set ppo.critic_warmup=0 --set ppo.advantage_estimator=grpo --set ppo.num_samples_per_prompt=4";
    let workspace = workspace();
    let lines = run(&workspace, "group", &format!("{ALL} {group}"));
    for line in &lines {
        for exact in ["policy/first_ratio_max_dev", "policy/first_approx_kl"] {
            assert_eq!(number(line, exact), 0.0, "{exact} in {line:?}");
        }
        assert!(number(line, "loss/ptx") > 0.0 && number(line, "loss/kl") >= 0.0);
        assert!(!line.contains_key("loss/value"), "{line:?}");
    }
    let tight = "--set ppo.target_kl=1e-9 --set ppo.rollback_kl_factor=1.0";
    let lines = run(&workspace, "back", &format!("{ALL} {group} {tight}"));
    assert_eq!(
        column(&lines, "policy/rolled_back"),
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    );
    let start = read(&workspace.path("models/sft/model.safetensors"));
    assert!(
        workspace.weights("back", "ppo") == start,
        "the policy moved"
    );
}

#[test]
fn the_coefficient_of_the_kl_waits_for_the_policy() {
    let adaptive =
        "--set ppo.kl_controller=adaptive --set ppo.kl_target=0.5 --set ppo.kl_horizon=200.0";
    for place in ["reward", "loss"] {
        let flags = format!("{adaptive} --set ppo.critic_warmup=3 --set ppo.kl_in={place}");
        let coefs = column(&run(&workspace(), "trial", &flags), "objective/kl_coef");
        // The fourth iteration is the policy's first, and it has a KL of 0: the fifth has a coefficient of its own.
        assert_eq!(coefs[..4], [coefs[0]; 4], "{place}");
        assert!(coefs[4] < coefs[3], "{place}: {coefs:?}");
    }
}

#[test]
fn how_passes_are_cut_changes_no_value_beyond_the_order_of_sums() {
    let workspace = workspace();
    // One iteration of one minibatch: what follows a step would multiply the last digit's noise.
    let once = "--set ppo.critic_warmup=0 --set ppo.max_steps=1 --set ppo.num_mini_batches=1 --set ppo.num_ppo_epochs=1";
    for aggregation in ["token", "sequence", "constant"] {
        let flags = format!("{ALL} {once} --set ppo.loss_aggregation={aggregation}");
        let whole = run(&workspace, &format!("{aggregation}-whole"), &flags);
        let small = format!("{flags} --set ppo.micro_batch_tokens=48");
        let cut = run(&workspace, &format!("{aggregation}-cut"), &small);
        for name in [
            "loss/policy",
            "loss/kl",
            "loss/entropy",
            "loss/ptx",
            "loss/value",
            "policy/grad_norm",
            "value/grad_norm",
        ] {
            let (a, b) = (number(&whole[0], name), number(&cut[0], name));
            // f32 sums of a few hundred terms in another order.
            assert!(
                (a - b).abs() <= 1e-4 * a.abs().max(1e-3),
                "{aggregation} {name}: {a} and {b}"
            );
        }
    }
}

#[test]
fn aggregations_lead_to_different_policies() {
    let workspace = workspace();
    let weights = ["token", "sequence", "constant"].map(|aggregation| {
        let flags = format!("--set ppo.max_steps=2 --set ppo.loss_aggregation={aggregation}");
        run(&workspace, aggregation, &flags);
        workspace.weights(aggregation, "ppo")
    });
    assert!(weights[0] != weights[1] && weights[1] != weights[2] && weights[0] != weights[2]);
}

/// The mean over tokens and the one over sequences × the longest answer differ by the length of the answers alone.
#[test]
fn the_constant_length_is_that_of_the_longest_answer() {
    let workspace = workspace();
    let flags = "--set ppo.max_steps=1 --set ppo.num_mini_batches=1 --set ppo.num_ppo_epochs=1 --set ppo.entropy_coef=0.1";
    let entropy = ["token", "constant"].map(|aggregation| {
        let flags = format!("{flags} --set ppo.loss_aggregation={aggregation}");
        let lines = run(&workspace, aggregation, &flags);
        let share = number(&lines[0], "rollout/length_mean") / 12.0;
        assert!(
            share < 1.0,
            "no answer is shorter than the longest: {lines:?}"
        );
        (number(&lines[0], "loss/entropy"), share)
    });
    let ((by_token, share), (constant, _)) = (entropy[0], entropy[1]);
    assert!((constant - by_token * share).abs() < 1e-6, "{entropy:?}");
}

#[test]
fn clip_higher_and_the_dual_clip_act() {
    let workspace = workspace();
    let fast = "--set ppo.max_steps=2 --set ppo.learning_rate=1e-2 --set ppo.num_ppo_epochs=4";
    let plain = run(&workspace, "plain", fast);
    assert!(!plain[0].contains_key("policy/dual_clip_fraction"));
    let higher = run(
        &workspace,
        "higher",
        &format!("{fast} --set ppo.cliprange_high=20.0"),
    );
    let clipped = |lines: &[Line]| number(&lines[0], "policy/clip_fraction");
    assert!(clipped(&plain) > clipped(&higher), "{plain:?} {higher:?}");
    assert!(
        clipped(&higher) > 0.0,
        "the lower range still acts: {higher:?}"
    );
    let dual = run(
        &workspace,
        "dual",
        &format!("{fast} --set ppo.dual_clip=1.05"),
    );
    assert!(
        number(&dual[0], "policy/dual_clip_fraction") > 0.0,
        "{dual:?}"
    );
    assert!(workspace.weights("dual", "ppo") != workspace.weights("plain", "ppo"));
    let never = run(
        &workspace,
        "never",
        &format!("{fast} --set ppo.dual_clip=1e30"),
    );
    assert_eq!(column(&never, "policy/dual_clip_fraction"), [0.0; 2]);
    assert!(workspace.weights("never", "ppo") == workspace.weights("plain", "ppo"));
}

#[test]
fn an_entropy_bonus_keeps_the_policy_uncertain() {
    let workspace = workspace();
    let without = run(&workspace, "without", "--set ppo.kl_coef=0.0");
    let with = run(
        &workspace,
        "with",
        "--set ppo.kl_coef=0.0 --set ppo.entropy_coef=1.0",
    );
    assert!(!without[0].contains_key("loss/entropy"));
    let last = |lines: &[Line]| number(&lines[5], "objective/entropy");
    assert!(
        last(&with) > last(&without) + 0.1,
        "{} and {}",
        last(&with),
        last(&without)
    );
    // The first minibatches are drawn from the policy whose entropy the rollout reports.
    let (loss, rollout) = (
        number(&with[0], "loss/entropy"),
        number(&with[0], "objective/entropy"),
    );
    assert!(loss >= rollout, "{loss} and {rollout}");
}

#[test]
fn kl_in_the_loss_is_zero_while_nothing_moves_and_pulls_when_something_does() {
    let workspace = workspace();
    for estimator in ["k2", "k3"] {
        let flags = format!("--set ppo.kl_in=loss --set ppo.kl_estimator={estimator}");
        let name = format!("still-{estimator}");
        let still = run(
            &workspace,
            &name,
            &format!("{flags} --set ppo.learning_rate=0.0 --set ppo.max_steps=3"),
        );
        assert_eq!(column(&still, "loss/kl"), [0.0; 3], "{estimator}");
        assert_eq!(column(&still, "objective/kl"), [0.0; 3], "{estimator}");
    }
    // A KL of no weight is in no place.
    let free = run(&workspace, "free", "--set ppo.kl_coef=0.0");
    assert!(!free[0].contains_key("loss/kl"));
    let held = run(
        &workspace,
        "held",
        "--set ppo.kl_in=loss --set ppo.kl_coef=5.0",
    );
    let kl = |lines: &[Line]| number(&lines[5], "objective/kl");
    assert!(
        kl(&held) < 0.5 * kl(&free),
        "{} and {}",
        kl(&held),
        kl(&free)
    );
    assert!(
        held.iter().all(|line| number(line, "loss/kl") >= 0.0),
        "{held:?}"
    );
}

/// With λ = γ = 1 an answer's returns are sums of its rewards, so a KL in the rewards shows in the value loss of the first iteration
/// that samples from a policy that has moved; one in the loss does not.
#[test]
fn in_the_loss_the_kl_leaves_the_rewards_alone() {
    let workspace = workspace();
    // The actor's steps are the same in the first iteration: all ratios start at 1 and the KL at 0, and one minibatch is all.
    let once = "--set ppo.max_steps=2 --set ppo.num_ppo_epochs=1 --set ppo.num_mini_batches=1 --set ppo.lam=1.0";
    let loss = |name: &str, flags: &str| {
        let lines = run(&workspace, name, &format!("{once} {flags}"));
        column(&lines, "loss/value")
    };
    let none = loss("none", "--set ppo.kl_coef=0.0");
    let reward = loss("reward", "--set ppo.kl_coef=2.0");
    let in_loss = loss("loss", "--set ppo.kl_coef=2.0 --set ppo.kl_in=loss");
    assert_eq!(none[0], reward[0]);
    assert_eq!(in_loss, none);
    assert!((reward[1] - none[1]).abs() > 1e-3, "{reward:?} {none:?}");
}

#[test]
fn a_target_ends_the_epochs_before_the_step_that_would_follow() {
    let workspace = workspace();
    let plain = run(&workspace, "plain", "");
    assert_eq!(column(&plain, "policy/updates"), [4.0; 6]);
    assert!(!plain[0].contains_key("policy/stopped_early"));
    // The first minibatch has KL 0 and steps; the second sees that the policy has moved.
    let tight = run(&workspace, "tight", "--set ppo.target_kl=1e-9");
    assert_eq!(column(&tight, "policy/updates"), [1.0; 6]);
    assert_eq!(column(&tight, "policy/stopped_early"), [1.0; 6]);
    let wide = run(
        &workspace,
        "wide",
        "--set ppo.target_kl=1e9 --set ppo.rollback_kl_factor=2.0",
    );
    assert_eq!(column(&wide, "policy/stopped_early"), [0.0; 6]);
    assert_eq!(column(&wide, "policy/rolled_back"), [0.0; 6]);
    assert!(workspace.weights("wide", "ppo") == workspace.weights("plain", "ppo"));
}

#[test]
fn an_iteration_that_went_too_far_is_taken_back_to_the_last_bit() {
    for limits in [
        // The epochs end early, and what they did is too much.
        "--set ppo.target_kl=1e-9 --set ppo.rollback_kl_factor=1.0",
        // A single minibatch: only the pass after it can tell.
        "--set ppo.target_kl=1e-9 --set ppo.rollback_kl_factor=1.0 --set ppo.num_mini_batches=1 --set ppo.num_ppo_epochs=1",
    ] {
        let workspace = workspace();
        let flags = format!(
            "{PTX} {limits} --set ppo.max_steps=3 --set ppo.save_steps=1 --set ppo.keep_last=9"
        );
        let ended = workspace.succeed(&format!("ppo config.toml {flags}"));
        assert!(
            ended.stderr.contains("iteration 2 was taken back"),
            "{}",
            ended.stderr
        );
        let mut lines = workspace.metrics("trial", "ppo");
        lines.retain(|line| number(line, "step") > 0.0);
        assert_eq!(column(&lines, "policy/rolled_back"), [1.0, 2.0, 3.0]);
        assert_eq!(column(&lines, "objective/kl"), [0.0; 3]);
        assert!(
            column(&lines, "policy/last_approx_kl")
                .iter()
                .all(|&kl| kl > 1e-9)
        );
        let start = read(&workspace.path("models/sft/model.safetensors"));
        assert!(
            workspace.weights("trial", "ppo") == start,
            "the policy moved"
        );
        let saved = checkpoints(&workspace, "trial");
        assert_eq!(saved.len(), 4, "{saved:?}");
        for file in ["actor", "actor-moments", "critic", "critic-moments"] {
            let bytes = |folder: &PathBuf| read(&folder.join(format!("{file}.safetensors")));
            let first = bytes(&saved[0]);
            assert!(
                saved.iter().all(|folder| bytes(folder) == first),
                "{file} differs"
            );
        }
        // The text is read again, so its loss is the same until the policy has moved.
        let ptx = column(&lines, "loss/ptx");
        if limits.contains("num_mini_batches=1") {
            assert!(ptx.iter().all(|&loss| loss == ptx[0]), "{ptx:?}");
        }
    }
}

#[test]
fn pretraining_text_is_learned_beside_the_reward() {
    let workspace = workspace();
    let without = run(&workspace, "without", "--set ppo.max_steps=8");
    assert!(!without[0].contains_key("loss/ptx"));
    let with = run(&workspace, "with", &format!("--set ppo.max_steps=8 {PTX}"));
    let loss = column(&with, "loss/ptx");
    assert!(loss[7] < loss[0] - 0.5, "{loss:?}");
}

/// The mixed-in loss against what evaluation of pretraining says of the same rows.
#[test]
fn the_loss_on_pretraining_text_is_that_of_pretraining() {
    let workspace = workspace();
    let rows = "--set pretrain.data=mix.jsonl --set pretrain.eval_data=mix.jsonl --set pretrain.context_length=24";
    let still =
        "--set pretrain.learning_rate=0.0 --set pretrain.batch_size=1 --set pretrain.max_steps=1";
    let config = String::from_utf8(read(&workspace.path("config.toml"))).expect("UTF-8");
    let model = config.find("[model]").expect("a table");
    let tokenizer = config.find("[tokenizer]").expect("a table");
    let from = format!(
        "{}[model]\nfrom = \"models/sft\"\n\n{}",
        &config[..model],
        &config[tokenizer..]
    );
    workspace.write("from.toml", &from);
    workspace.succeed(&format!(
        "pretrain from.toml --set run.name=text {rows} {still}"
    ));
    let text = workspace.metrics("text", "pretrain");
    let expected = number(&text[0], "eval/loss");
    let count = (1.0 / number(&text[1], "train/epoch")).round() as usize;
    assert!(count > 10, "{text:?}");
    let all = format!(
        "--set ppo.ptx_coef=0.1 --set ppo.ptx_data=mix.jsonl --set ppo.ptx_length=24 --set ppo.ptx_batch_size={count}"
    );
    let still =
        "--set ppo.learning_rate=0.0 --set ppo.max_steps=2 --set ppo.micro_batch_tokens=100";
    for loss in column(
        &run(&workspace, "mixed", &format!("{all} {still}")),
        "loss/ptx",
    ) {
        let gap = (loss / expected - 1.0).abs();
        assert!(gap < 1e-5, "{loss} against {expected}");
    }
}

#[test]
fn other_pretraining_text_does_not_continue_a_run() {
    let workspace = workspace();
    let flags = format!("{PTX} --set ppo.lr_scheduler_type=constant");
    run(
        &workspace,
        "trial",
        &format!("{flags} --set ppo.max_steps=1"),
    );
    workspace.write(
        "mix.jsonl",
        &records(
            0,
            20,
            |i| serde_json::json!({"text": format!("other {i} words and more of them")}),
        ),
    );
    let ended = workspace.run(&format!("ppo config.toml {flags} --set ppo.max_steps=2"));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("ppo.ptx_data"), "{}", ended.stderr);
}

#[test]
fn updates_do_not_depend_on_threads_or_recomputation() {
    let workspace = workspace();
    run(&workspace, "plain", ALL);
    let plain = workspace.weights("plain", "ppo");
    for (i, key) in [
        "run.threads=1",
        "ppo.recompute=block",
        "ppo.rollout_batch=5",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("run-{i}");
        run(&workspace, &name, &format!("{ALL} --set {key}"));
        assert!(
            workspace.weights(&name, "ppo") == plain,
            "{key} changed the weights"
        );
    }
}

#[test]
fn steps_that_break_the_weights_are_taken_back_or_end_the_run() {
    let broken = "--set ppo.learning_rate=1e30 --set ppo.max_grad_norm=0.0 --set ppo.max_steps=3 --set run.max_bad_steps=9";
    let workspace = workspace();
    let limits = "--set ppo.target_kl=0.1 --set ppo.rollback_kl_factor=2.0";
    let lines = run(&workspace, "back", &format!("{PTX} {broken} {limits}"));
    assert_eq!(column(&lines, "policy/rolled_back"), [1.0, 2.0, 3.0]);
    let start = read(&workspace.path("models/sft/model.safetensors"));
    assert!(
        workspace.weights("back", "ppo") == start,
        "the policy moved"
    );
    let terms = format!(
        "{PTX} --set ppo.entropy_coef=0.01 --set ppo.kl_in=loss --set ppo.loss_aggregation=sequence"
    );
    let flags = format!("ppo config.toml {terms} {broken} --set run.max_bad_steps=3");
    refused(
        &workspace,
        &flags,
        &[
            "3 optimizer steps in a row",
            "entropy loss",
            "ptx loss",
            "ppo.learning_rate",
        ],
    );
}

#[test]
fn pretraining_text_that_cannot_serve_is_refused() {
    let workspace = workspace();
    let with = |flags: &str| format!("ppo config.toml {PTX} {flags}");
    let missing = with("--set ppo.ptx_data=nowhere.txt");
    refused(
        &workspace,
        &missing,
        &["ppo.ptx_data", "nowhere.txt", "no such file"],
    );
    let long = with("--set ppo.ptx_length=65");
    refused(
        &workspace,
        &long,
        &["ppo.ptx_length is 65", "context holds 64"],
    );
    workspace.write("short.txt", "a few words");
    let short = with("--set ppo.ptx_data=short.txt");
    refused(&workspace, &short, &["ppo.ptx_data", "one row needs 24"]);
    let other = with("--set ppo.ptx_data=prompts.jsonl");
    refused(
        &workspace,
        &other,
        &["ppo.ptx_data", "prompts.jsonl:1", "text"],
    );
}
