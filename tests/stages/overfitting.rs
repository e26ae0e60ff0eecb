//! Each stage overfits one batch: gradient, optimizer and training loop together point in the right
//! direction.

use crate::on_policy::number;
use crate::support::{Line, Workspace, example, lines, pair, prompt, records};

/// The last line of a stage's metrics, and the line of its first step.
fn ends(workspace: &Workspace, stage: &str) -> (Line, Line) {
    let mut lines = workspace.metrics("trial", stage);
    lines.retain(|line| line["step"] != 0);
    let last = lines.pop().expect("a line");
    (lines.swap_remove(0), last)
}

#[test]
fn pretraining_learns_one_batch_by_heart() {
    let workspace = Workspace::new();
    let text = lines(&workspace.path("text.jsonl"));
    let few: Vec<String> = text[..6]
        .iter()
        .map(|l| serde_json::json!(l).to_string())
        .collect();
    workspace.write("text.jsonl", &few.join("\n"));
    workspace
        .succeed("pretrain config.toml --set pretrain.max_steps=150 --set pretrain.batch_size=10");
    let (first, last) = ends(&workspace, "pretrain");
    assert!(
        number(&first, "train/epoch") >= 1.0,
        "one step sees all: {first:?}"
    );
    assert!(number(&first, "train/loss") > 4.0, "{first:?}");
    // The first word of a row cannot be predicted from anything.
    assert!(number(&last, "train/loss") < 0.3, "{last:?}");
}

#[test]
fn fine_tuning_learns_one_batch_by_heart() {
    let workspace = Workspace::trained();
    workspace.write("sft.jsonl", &records(0, 16, example));
    workspace.succeed(
        "sft config.toml --set sft.max_steps=150 --set sft.eval_fraction=0.0 \
                       --set sft.eval_steps=0",
    );
    let (first, last) = ends(&workspace, "sft");
    assert_eq!(number(&first, "train/epoch"), 1.0);
    assert!(number(&first, "train/loss") > 0.3, "{first:?}");
    assert!(number(&last, "train/loss") < 0.03, "{last:?}");
}

#[test]
fn the_reward_model_learns_one_batch_by_heart() {
    let workspace = Workspace::trained();
    // The answers are swapped in every third pair, so that no single word decides.
    let tangled = |i: usize| {
        let mut pair = pair(i);
        if i.is_multiple_of(3) {
            let chosen = pair["chosen"].take();
            pair["chosen"] = pair["rejected"].take();
            pair["rejected"] = chosen;
        }
        pair
    };
    workspace.write("pairs.jsonl", &records(0, 16, tangled));
    workspace.write("pairs_eval.jsonl", &records(0, 16, tangled));
    workspace.succeed(
        "reward config.toml --set reward.max_steps=80 --set reward.eval_fraction=0.0 \
         --set reward.eval_data=pairs_eval.jsonl",
    );
    let (first, last) = ends(&workspace, "reward");
    assert_eq!(number(&first, "train/epoch"), 1.0);
    assert_eq!(number(&last, "eval/accuracy"), 1.0);
    assert!(number(&last, "train/loss") < 0.02, "{last:?}");
}

#[test]
fn ppo_earns_a_higher_score_on_one_batch_of_prompts() {
    let workspace = Workspace::trained();
    workspace.write("prompts.jsonl", &records(0, 16, prompt));
    workspace.succeed("ppo config.toml --set ppo.max_steps=25 --set ppo.kl_coef=0.0");
    let (first, last) = ends(&workspace, "ppo");
    let (before, after) = (
        number(&first, "objective/scores"),
        number(&last, "objective/scores"),
    );
    // Happy endings score about +6, sad ones −6, and the initial policy has as many of either.
    assert!(after > before + 3.0, "from {before} to {after}");
}
