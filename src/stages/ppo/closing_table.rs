//! The closing table of PPO.

use super::evaluation::{EvalResults, Evaluator};
use super::state::PpoState;
use crate::config::Ppo;
use crate::train::metrics::names;
use crate::train::run_folder::StageFolder;
use crate::train::summary::Summary;

/// Metrics of the table in its order, with the names that it shows.
const MEASURES: [(&str, &str); 12] = [
    (names::EVAL_SCORE, "reward model"),
    (names::EVAL_JUDGE_SCORE, "judge (never seen in training)"),
    (names::EVAL_VALENCE_MEAN, "valence per word"),
    (names::EVAL_VALENCE_SUM, "valence per completion"),
    (
        names::EVAL_JUDGE_CORRELATION,
        "rank correlation of reward and judge",
    ),
    (
        names::EVAL_JUDGE_DISAGREEMENT,
        "share of prompts moved against the judge",
    ),
    (names::EVAL_KL, "KL per sequence"),
    (names::EVAL_ENTROPY, "entropy per token"),
    (names::EVAL_DISTINCT_2, "distinct-2"),
    (names::EVAL_SEQ_REP_4, "repeated 4-grams"),
    (names::EVAL_EOS_FRACTION, "finished"),
    (names::EVAL_LENGTH_MEAN, "tokens"),
];

/// The closing table: the evaluations before and after training with a few completions, or, without
/// evaluations, the means of the first and last rollout; then the paths of the stage's files.
pub fn table(
    config: &Ppo,
    state: &PpoState,
    evaluator: Option<&Evaluator>,
    folder: &StageFolder,
) -> Summary {
    let mut table = Summary::new("ppo");
    match (evaluator, &state.before, &state.last) {
        (Some(evaluator), Some(before), Some(after)) => {
            add_measures(&mut table, config, before, after);
            if let Some(words) = state.watch.in_words() {
                table.text("judge fell while reward rose", "", &words);
            }
            if let Some(warning) = never_ends(after) {
                table.note(&format!("warning: {warning}"));
            }
            add_completions(&mut table, evaluator, before, after);
        }
        _ => add_rollouts(&mut table, state),
    }
    table
        .text("iterations", "", &state.iteration.to_string())
        .path("policy", &folder.final_model());
    if evaluator.is_some() {
        table.path("samples", &folder.samples());
    }
    table.path("metrics", &folder.metrics());
    table
}

/// Adds a row for each metric that both evaluations have, and for each component of a weighted sum.
fn add_measures(table: &mut Summary, config: &Ppo, before: &EvalResults, after: &EvalResults) {
    let mut row = |name: &str, shown: &str| {
        if let (Some(before), Some(after)) = (before.number(name), after.number(name)) {
            table.row(shown, before, after);
        }
    };
    let summed = !config.rewards.is_empty();
    for (name, shown) in MEASURES {
        let sum = summed && name == names::EVAL_SCORE;
        row(name, if sum { "score (weighted sum)" } else { shown });
    }
    for name in before.names().filter(|_| summed) {
        if let Some(component) = name.strip_prefix(names::EVAL_REWARD) {
            row(name, &format!("reward {component}"));
        }
    }
}

/// Adds the first prompts (of a chat the last user message) with their completions before and
/// after.
fn add_completions(
    table: &mut Summary,
    evaluator: &Evaluator,
    before: &EvalResults,
    after: &EvalResults,
) {
    let pairs = before.completions().iter().zip(after.completions());
    for (prompt, (before, after)) in evaluator.prompts().iter().zip(pairs) {
        let question = prompt.question.trim();
        table.note(&format!(
            "{question}\n    before: {before}\n    after:  {after}"
        ));
    }
}

/// Adds the means of the first and of the last iteration's rollout.
fn add_rollouts(table: &mut Summary, state: &PpoState) {
    let Some([first, last]) = state.rollouts else {
        return;
    };
    table.row("score (training prompts)", first.score, last.score);
    if let (Some(first), Some(last)) = (first.kl, last.kl) {
        table.row("KL per sequence", first, last);
    }
    table.row("entropy per token", first.entropy, last.entropy);
    table.row("tokens", first.length, last.length);
}

/// A warning if no completion of the evaluation ended by itself.
fn never_ends(results: &EvalResults) -> Option<String> {
    let finished = results.number(names::EVAL_EOS_FRACTION)?.mean;
    (finished == 0.0).then(|| {
        "no completion ended by itself: raise ppo.max_new_tokens, or add the text that ends an \
         answer to ppo.stop"
            .to_owned()
    })
}
