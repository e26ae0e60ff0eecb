//! Sharing combined with other options of PPO's iterations: estimators, dynamic sampling,
//! pretraining text, limits; and evaluations split into runs.

use crate::on_policy::{assert_start_on_policy, iterations, number};
use crate::ppo_update::{column, workspace};
use crate::ptx::PTX;
use crate::refusal::refused;
use crate::sharing::{adapters, trunk};
use crate::support::{Workspace, lines};

/// Few, likely tokens: many groups have equal scores, so that one round of replacements is not
/// enough and groups whose states were freed fill up the batch.
const NARROW: &str = "--set ppo.num_samples_per_prompt=2 --set ppo.top_k=2 \
                      --set ppo.temperature=0.7 --set ppo.max_new_tokens=3 \
                      --set ppo.dynamic_sampling=1";

#[test]
fn remax_with_replaced_groups_and_pretraining_text_is_exact_on_a_trunk() {
    let workspace = workspace();
    let flags = format!(
        "{} {NARROW} {PTX} --set ppo.advantage_estimator=remax",
        trunk(&workspace)
    );
    let lines = iterations(&workspace, "crossed", &flags);
    assert_start_on_policy(&lines, &flags);
    let total = |name: &str| column(&lines, name).iter().sum::<f64>();
    assert!(total("rollout/groups_dropped") > 0.0, "{lines:?}");
    assert!(total("rollout/no_spread_fraction") > 0.0, "{lines:?}");
    for line in &lines {
        assert!(number(line, "loss/ptx") > 0.0, "{line:?}");
        assert!(line.contains_key("rollout/baseline_score"), "{line:?}");
    }
}

/// The learning rate rises: the first iterations stay within the limit, a later one exceeds it, and
/// those after it start on policy too.
#[test]
fn grpo_starts_on_policy_behind_an_iteration_that_was_taken_back() {
    let workspace = Workspace::trained();
    let rising = "--set ppo.lr_scheduler_type=constant --set ppo.warmup_steps=5 \
                  --set ppo.learning_rate=2e-2 --set ppo.max_steps=8";
    let limits = "--set ppo.target_kl=0.05 --set ppo.rollback_kl_factor=3.0";
    let group = "--set ppo.advantage_estimator=grpo --set ppo.num_samples_per_prompt=4";
    let flags = format!(
        "{} {group} {rising} {limits}",
        adapters(&workspace, "top:1")
    );
    let lines = iterations(&workspace, "crossed", &flags);
    assert_start_on_policy(&lines, &flags);
    let taken_back = column(&lines, "policy/rolled_back");
    assert_eq!(taken_back[0], 0.0, "{taken_back:?}");
    assert!(taken_back[6] > 0.0, "none follows: {taken_back:?}");
}

/// Eight held-out prompts in one run and in three; likewise sixteen prompts of the reference.
#[test]
fn how_measurements_are_cut_changes_nothing() {
    let workspace = Workspace::trained();
    let share = trunk(&workspace);
    let measured = |name: &str, batch: usize| {
        let flags = format!(
            "--set ppo.judge_model=models/reward --set ppo.score_normalization=reference \
             --set ppo.batch_size=2 \
             --set ppo.num_mini_batches=1 --set ppo.max_steps=2 --set ppo.eval_steps=1 \
             --set ppo.rollout_batch={batch}"
        );
        iterations(&workspace, name, &format!("{share} {flags}"));
        let samples = lines(&workspace.stage(name, "ppo").join("samples.jsonl"));
        (samples, workspace.weights(name, "ppo"))
    };
    let (whole, cut) = (measured("whole", 64), measured("cut", 3));
    assert_eq!(whole.0.len(), 3 * 8);
    assert!(whole == cut);
}

#[test]
fn a_pass_that_cannot_hold_one_sequence_is_refused() {
    let workspace = Workspace::trained();
    for command in ["ppo", "plan"] {
        let flags = format!("{command} config.toml --set ppo.micro_batch_tokens=16");
        refused(
            &workspace,
            &flags,
            &[
                "ppo.micro_batch_tokens",
                "16",
                "raise",
                "ppo.max_new_tokens",
            ],
        );
    }
}
