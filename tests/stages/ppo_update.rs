//! PPO's update in real runs: all options at once, the terms of the actor's loss, and the critic's
//! warm-up, each with an exact expectation. Limits and pretraining text are in `limits` and `ptx`.

use crate::on_policy::number;
use crate::support::{Line, Workspace, read, records};

/// All options of the update at once. The first two iterations train only the critic.
const ALL: &str = "--set ppo.loss_aggregation=sequence --set ppo.dual_clip=3.0 \
                   --set ppo.cliprange_high=0.28 --set ppo.entropy_coef=0.01 \
                   --set ppo.kl_in=loss --set ppo.target_kl=0.5 --set ppo.rollback_kl_factor=4.0 \
                   --set ppo.critic_warmup=2 \
                   --set ppo.rescore=true --set ppo.ptx_coef=0.5 --set ppo.ptx_data=mix.jsonl \
                   --set ppo.ptx_length=24 --set ppo.ptx_batch_size=3";

/// Trained models, and text that they have not seen.
pub fn workspace() -> Workspace {
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

pub fn column(lines: &[Line], name: &str) -> Vec<f64> {
    lines.iter().map(|line| number(line, name)).collect()
}

/// Runs PPO under its own name and returns the metrics of its iterations.
#[track_caller]
pub fn run(workspace: &Workspace, name: &str, flags: &str) -> Vec<Line> {
    workspace.succeed(&format!("ppo config.toml --set run.name={name} {flags}"));
    let mut lines = workspace.metrics(name, "ppo");
    lines.retain(|line| number(line, "step") > 0.0);
    lines
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
                "policy/last_approx_kl",
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
        // The policy does not move in the first two iterations, so the third still samples from the
        // reference.
        let kl = column(&lines, "objective/kl");
        assert_eq!(kl[..3], [0.0; 3], "{cut}");
        assert!(kl[3..].iter().all(|&kl| kl != 0.0), "{cut}: {kl:?}");
    }
}

#[test]
fn without_a_critic_every_term_acts_too() {
    let group = "--set ppo.critic_warmup=0 --set ppo.advantage_estimator=grpo \
                 --set ppo.num_samples_per_prompt=4";
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
        // The policy is first trained in the fourth iteration, which still has a KL of 0: the
        // coefficient of the fifth is the first to differ.
        assert_eq!(coefs[..4], [coefs[0]; 4], "{place}");
        assert!(coefs[4] < coefs[3], "{place}: {coefs:?}");
    }
}

#[test]
fn how_passes_are_cut_changes_no_value_beyond_the_order_of_sums() {
    let workspace = workspace();
    // One iteration of one minibatch: further steps would amplify differences in the last digit.
    let once = "--set ppo.critic_warmup=0 --set ppo.max_steps=1 --set ppo.num_mini_batches=1 \
                --set ppo.num_ppo_epochs=1";
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
            // `f32` sums of a few hundred terms in another order.
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

/// The mean over tokens and the mean over sequences divided by the longest answer differ only
/// through the answers' lengths.
#[test]
fn the_constant_length_is_that_of_the_longest_answer() {
    let workspace = workspace();
    let flags = "--set ppo.max_steps=1 --set ppo.num_mini_batches=1 --set ppo.num_ppo_epochs=1 \
                 --set ppo.entropy_coef=0.1";
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
    // Without a weight, the KL is in neither place, and it is not measured.
    let unweighted = run(&workspace, "unweighted", "--set ppo.kl_coef=0.0");
    assert!(!unweighted[0].contains_key("loss/kl"));
    let free = run(&workspace, "free", "--set ppo.kl_coef=1e-300");
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

/// With λ = γ = 1 the returns are sums of an answer's rewards, so a KL in the rewards shows in the
/// value loss of the first iteration sampled from a policy that has moved, and a KL in the loss
/// does not.
#[test]
fn in_the_loss_the_kl_leaves_the_rewards_alone() {
    let workspace = workspace();
    // The actor's steps are the same in the first iteration: all ratios start at 1, the KL at 0,
    // and there is only one minibatch.
    let once = "--set ppo.max_steps=2 --set ppo.num_ppo_epochs=1 --set ppo.num_mini_batches=1 \
                --set ppo.lam=1.0";
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
